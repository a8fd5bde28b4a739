"""Exact Hessian blocks on smooth networks: what they cost, how many nodes ``auto`` has them of, and how exact they
are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.markdown import rows, section
from benchmarks.networks import SmoothConvolutions, SmoothEncoder, mlp
from benchmarks.problems import Case, digits, seeded, signals, trained_case
from benchmarks.setting import Setting, timed
from nndiag.measures import Plan
from nndiag.records.level import Level
from nndiag.records.measured import Measured

LIMIT = 3
"""Nodes of a layer whose blocks the benchmark forms itself."""
HEAD = (
    "network", "samples", "`--curvature`", "nodes with exact blocks", "units", "most negative λ_min/λ_max",
    "error of λ_max", "of λ_min", "of the trace",
)  # fmt: skip


def table(setting: Setting) -> list[str]:
    """Tabulate both modes on every network."""
    body = []
    for make in cases(setting):
        case = make()
        for curvature in ("auto", "hessian"):
            setting.say(f"{case.name}, {curvature}")
            run, spent = timed(case, Plan(Level.CURVATURE, curvature=curvature), setting.repeats)
            exact = {layer.name: exact_nodes(run, layer.name) for layer in run.layers}
            count, every = sum(map(len, exact.values())), sum(layer.nodes for layer in run.layers)
            body.append([
                case.name, str(len(case.probe)), curvature, f"{count:,} of {every:,}", f"{spent.units:.0f}",
                f"{steepest_descent(run):.2g}", *(f"{error:.1e}" for error in errors(case, run, exact)),
            ])  # fmt: skip
    return [
        *section(
            "Exact blocks on smooth networks",
            "The whole measurement, Gauss-Newton blocks of all nodes included, in units. Errors are the largest over "
            f"{LIMIT} random nodes of every linear and convolutional layer, relative to the largest magnitude among "
            "the node's eigenvalues; what they are compared with is the Hessian by double backward in float64, an "
            "entry of the gradient at a time, so that they hold the rounding of single precision. `auto` spends a "
            "fixed number of operations.",
        ),
        *rows(HEAD, body),
    ]


def cases(setting: Setting) -> list[Callable[[], Case]]:
    """Return the networks, each to be built when its turn comes."""
    device, count = setting.device, 60 if setting.quick else 500
    steps = 10 if setting.quick else 200
    flat, labels = digits(count)
    pictures = flat.unflatten(1, (1, 28, 28))
    width = 16 if setting.quick else 32

    def case(name: str, build: Callable[[], nn.Module], data: tuple[Tensor, Tensor]) -> Callable[[], Case]:
        return lambda: trained_case(name, build, data, device, steps=steps)

    return [
        case(
            f"MLP 784-{2 * width}-{2 * width}-10, GELU, on digits",
            lambda: mlp(784, 2 * width, 2 * width, 10, activation=nn.GELU),
            (flat, labels),
        ),
        case(
            "three convolutions, GELU, on digits", lambda: SmoothConvolutions(width // 4), (pictures, labels)
        ),
        case(
            f"Transformer encoder of {width // 2}, 16 positions",
            lambda: SmoothEncoder(24, width // 2),
            signals(count // 4, 16, 24, seeded()),
        ),
    ]


def exact_nodes(run: Measured, name: str) -> list[int]:
    """Return the nodes of a layer that have exact blocks."""
    layer = next(layer for layer in run.layers if layer.name == name)
    return [i for i in range(layer.nodes) if layer.kind_of(i) == "hessian"]


def steepest_descent(run: Measured) -> float:
    """Return the least ``λ_min/λ_max`` of all nodes, of those whose ``λ_max`` is above a thousandth of the largest."""
    found = []
    for layer in run.layers:
        if "lambda_min" in layer.per_node:
            largest = layer.per_node["lambda_max"]
            alive = largest > 1e-3 * np.nanmax(largest)
            found.append(float(np.nanmin(layer.per_node["lambda_min"][alive] / largest[alive])))
    return min(found)


def errors(case: Case, run: Measured, exact: Mapping[str, list[int]]) -> list[float]:
    """Return the largest errors of λ_max, λ_min and the trace."""
    model = copy.deepcopy(case.model).double()
    (x,) = case.probe.inputs
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        value = F.cross_entropy(model(x.double()), case.probe.targets)
    draw = torch.Generator().manual_seed(0)
    worst = [0.0, 0.0, 0.0]
    for layer in run.layers:
        module = model.get_submodule(layer.name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        chosen = [
            exact[layer.name][i] for i in torch.randperm(len(exact[layer.name]), generator=draw)[:LIMIT]
        ]
        for node in chosen:
            eigenvalues = torch.linalg.eigvalsh(hessian_block(value, module, node)).numpy()
            scale = np.abs(eigenvalues).max()
            truth = eigenvalues[-1], eigenvalues[0], eigenvalues.sum()
            found = [layer.per_node[name][node] for name in ("lambda_max", "lambda_min", "trace")]
            for i, (one, other) in enumerate(zip(found, truth, strict=True)):
                worst[i] = max(worst[i], abs(one - other) / scale)
    return worst


def hessian_block(value: Tensor, module: nn.Linear | nn.Conv2d, node: int) -> Tensor:
    """Return the Hessian in the weights and the bias of a node, ``(size, size)``."""
    own = list(module.parameters())
    first = torch.autograd.grad(value, own, create_graph=True)
    entries = torch.cat([g[node].flatten() for g in first])
    columns = []
    for entry in entries:
        second = torch.autograd.grad(entry, own, retain_graph=True)
        columns.append(torch.cat([g[node].flatten() for g in second]))
    block = torch.stack(columns)
    return (block + block.T) / 2
