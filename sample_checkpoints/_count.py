"""Independent counts on a network: dead units, node norms, dense curvature. Plain torch, no nndiag."""

from __future__ import annotations

from typing import Any

import torch
from _run import Checkpoint, Run, Spec, flat, mean_loss, replay, rounded
from torch import Tensor, nn
from torch.func import functional_call

PARAMETRISED = (nn.Linear, nn.Conv2d)


def dead_units(network: nn.Sequential, x: Tensor) -> dict[str, list[int]]:
    """Per layer before a ReLU: the units that never rise above zero, on any sample and position."""
    dead, owner = {}, ""
    with torch.no_grad():
        for name, module in network.named_children():
            x = module(x)
            if isinstance(module, PARAMETRISED):
                owner = name
            if isinstance(module, nn.ReLU):
                highest = x.transpose(0, 1).flatten(1).amax(1)
                dead[owner] = torch.nonzero(highest <= 0).flatten().tolist()
    return dead


def dead_counts(network: nn.Sequential, x: Tensor) -> dict[str, int]:
    """Number of dead units per layer; refuses a count that rests on rounding."""
    single = dead_units(network, x)
    double = dead_units(network.double(), x.double())
    network.float()
    if single != double:
        raise SystemExit(f"dead units differ between float32 and float64: {single} against {double}")
    return {layer: len(units) for layer, units in single.items()}


def score(network: nn.Sequential, probe: dict[str, Tensor], loss: str) -> dict[str, float]:
    """Loss on the probe and, where the targets are classes, the accuracy."""
    with torch.no_grad():
        output = network(probe["x"])
    result = {"loss": rounded(float(mean_loss(loss, output, probe["y"])))}
    if loss == "cross_entropy":
        result["accuracy"] = rounded(float((output.argmax(1) == probe["y"]).float().mean()))
    return result


def relu_facts(
    spec: Spec, checkpoints: list[Checkpoint], probe: dict[str, Tensor], training: Tensor
) -> dict[str, Any]:
    """Loss, accuracy and dead units of every checkpoint, and since which epoch a layer is wholly dead."""
    rows = []
    for checkpoint, network in replay(spec, checkpoints):
        row = {"file": checkpoint.file + ".safetensors", **checkpoint.place}
        row |= score(network, probe, "cross_entropy")
        row["dead"] = dead_counts(network, probe["x"])
        row["dead_on_training"] = {k: len(v) for k, v in dead_units(network, training).items()}
        rows.append(row)
    first = checkpoints[0].state
    units = {layer: len(first[f"{layer}.weight"]) for layer in rows[0]["dead"]}
    since = {layer: dead_since(rows, layer, count) for layer, count in units.items()}
    return {"units": units, "dead_since": since, "checkpoints": rows}


def dead_since(rows: list[dict[str, Any]], layer: str, units: int) -> int | None:
    """The epoch from which on every unit of the layer is dead in each later checkpoint."""
    since = None
    for row in reversed(rows):
        if row["dead"][layer] < units:
            break
        since = row["epoch"]
    return since


def node_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per layer the norm of each node, incoming weights and bias together."""
    layers = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    return {
        k: torch.cat([state[f"{k}.weight"].flatten(1), state[f"{k}.bias"][:, None]], 1).norm(dim=1)
        for k in layers
    }


def dense_hessian(network: nn.Sequential, probe: dict[str, Tensor], loss: str) -> Tensor:
    """The Hessian of the mean probe loss in all parameters, float64, by automatic differentiation."""
    network = network.double()
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]
    sizes = [p.numel() for p in network.parameters()]
    x, y = probe["x"].double(), probe["y"].double()

    def value(theta: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        return mean_loss(loss, functional_call(network, dict(zip(names, parts, strict=True)), (x,)), y)

    return torch.autograd.functional.hessian(value, flat(network), vectorize=True)


def node_places(network: nn.Sequential) -> dict[tuple[str, int], Tensor]:
    """(layer, index) -> places of the parameters of a Linear node in the flat vector, bias last."""
    places, start = {}, 0
    for name, module in network.named_children():
        if isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            weights = start + torch.arange(rows * columns).view(rows, columns)
            biases = start + rows * columns + torch.arange(rows)
            for index in range(rows):
                places[name, index] = torch.cat([weights[index], biases[index : index + 1]])
        start += sum(p.numel() for p in module.parameters())
    return places


def sharpness(network: nn.Sequential, probe: dict[str, Tensor], loss: str) -> dict[str, Any]:
    """The largest eigenvalue of the full Hessian, and the largest among the blocks of single nodes."""
    hessian = dense_hessian(network, probe, loss)
    tops = {
        node: float(torch.linalg.eigvalsh(hessian[at][:, at])[-1])
        for node, at in node_places(network).items()
    }
    layer, index = max(tops, key=lambda node: tops[node])
    return {
        "lambda_max": rounded(float(torch.linalg.eigvalsh(hessian)[-1])),
        "sharpest_node": {"layer": layer, "index": index, "lambda_max": rounded(tops[layer, index])},
    }


def describe(run: Run) -> list[str]:
    """The counts of a run as lines for the terminal."""
    since = {k: v for k, v in run.facts.get("dead_since", {}).items() if v is not None}
    lines = [f"{run.name}: {len(run.checkpoints)} checkpoints; wholly dead since: {since or 'none'}"]
    keys = ("loss", "accuracy", "dead", "norm_ratio", "lambda_max", "sharpest_node", "eigenvalues_sum", "w")
    for row in run.facts["checkpoints"]:
        lines.append(f"  {row['file']}: " + ", ".join(f"{k} {row[k]}" for k in keys if k in row))
    return lines
