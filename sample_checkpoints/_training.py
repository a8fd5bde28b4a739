"""The digit classifiers trained in mini-batches: healthy, dying, decayed, convolutional."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from _count import node_norms, relu_facts
from _digits import Digits, digits
from _run import Checkpoint, Run, Spec, at_epoch, build, rounded
from torch import nn

HELD_OUT = "the 397 held-out digits"
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def start(spec: Spec, seed: int) -> nn.Sequential:
    """The network with He-normal weights and zero biases."""
    torch.manual_seed(seed)
    network = build(spec)
    for module in network:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


def train(
    spec: Spec, data: Digits, optimizer: dict[str, Any], *, seed: int, epochs: int, batch: int
) -> list[Checkpoint]:
    """Train with cross-entropy and keep the weights of every epoch, the initial ones first."""
    network = start(spec, seed)
    settings = {k: v for k, v in optimizer.items() if k != "name"}
    stepper = OPTIMIZERS[optimizer["name"]](network.parameters(), **settings)
    order = torch.Generator().manual_seed(seed)
    kept, step = [at_epoch(network, 0, 0)], 0
    for epoch in range(1, epochs + 1):
        for chosen in torch.randperm(len(data.train_x), generator=order).split(batch):
            stepper.zero_grad()
            nn.functional.cross_entropy(network(data.train_x[chosen]), data.train_y[chosen]).backward()
            stepper.step()
            step += 1
        kept.append(at_epoch(network, epoch, step))
    return kept


def mlp(*widths: int) -> Spec:
    """Linear layers of these widths with ReLU between them."""
    spec: Spec = []
    for fan_in, units in pairwise(widths):
        spec += [["Linear", fan_in, units], ["ReLU"]]
    return spec[:-1]


def classifier(
    spec: Spec, data: Digits, optimizer: dict[str, Any], checkpoints: list[Checkpoint]
) -> dict[str, Any]:
    """What all runs of this file have in common, as keywords of Run."""
    probe = {"x": data.held_x.contiguous(), "y": data.held_y.contiguous()}
    return {
        "spec": spec,
        "probe": probe,
        "probe_source": HELD_OUT,
        "loss": "cross_entropy",
        "include": "epoch_*.safetensors",
        "checkpoints": checkpoints,
        "facts": relu_facts(spec, checkpoints, probe, data.train_x),
        "optimizer": optimizer,
        "policy": {"max_degenerate_fraction": 0.1},
    }


def table(heads: list[str], rows: list[list[Any]]) -> str:
    """A markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def outline(row: dict[str, Any]) -> list[Any]:
    """The first three cells of a row about an epoch: epoch, loss, share of right answers."""
    return [row["epoch"], f"{row['loss']:.3f}", f"{row['accuracy']:.1%}"]


def healthy_mlp() -> Run:
    """Adam at a usual learning rate."""
    spec, data = mlp(64, 128, 64, 10), digits(centred=True)
    optimizer = {"name": "adam", "lr": 1e-3, "betas": [0.9, 0.999]}
    shared = classifier(spec, data, optimizer, train(spec, data, optimizer, seed=0, epochs=8, batch=32))
    last = shared["facts"]["checkpoints"][-1]
    return Run(
        name="healthy_mlp",
        network="MLP 64-128-64-10, ReLU",
        verdict=f"Nothing is wrong: {last['accuracy']:.1%} of the held-out digits are right after epoch "
        f"{last['epoch']} and {sum(last['dead'].values())} of 192 ReLU units never rise above zero on them.",
        story="Adam, learning rate 1e-3, batches of 32, 8 epochs from He-normal weights.",
        **shared,
    )


def dying_mlp() -> Run:
    """Momentum with a learning rate that is too large."""
    spec, data = mlp(64, 64, 64, 32, 10), digits(centred=True)
    optimizer = {"name": "sgd", "lr": 0.18, "momentum": 0.9}
    shared = classifier(spec, data, optimizer, train(spec, data, optimizer, seed=2510, epochs=12, batch=64))
    rows = shared["facts"]["checkpoints"]
    (layer, since), *others = [(k, v) for k, v in shared["facts"]["dead_since"].items() if v is not None]
    if others:
        raise SystemExit(f"more than one layer of the dying run is wholly dead: {others}")
    if rows[-1]["dead_on_training"][layer] < shared["facts"]["units"][layer]:
        raise SystemExit(f"layer {layer} of the dying run still answers to training digits")
    best = max(rows, key=lambda row: row["accuracy"])
    heads = [f'dead in "{k}" ({n} units)' for k, n in shared["facts"]["units"].items()]
    course = table(
        ["epoch", "loss", "right", *heads], [[*outline(row), *row["dead"].values()] for row in rows]
    )
    return Run(
        name="dying_mlp",
        network="MLP 64-64-64-32-10, ReLU",
        verdict=f'Dying of a large learning rate: from epoch {since} on every unit of layer "{layer}" is '
        "dead and the loss stays near ln 10 = 2.303; known by counting the units whose ReLU never rises "
        "above zero on the held-out digits.",
        story=f"SGD, learning rate 0.18, momentum 0.9, batches of 64. Epoch {best['epoch']} is still right "
        f"on {best['accuracy']:.0%} of the digits. The layer is dead on all training digits "
        f"too.\n\n{course}",
        **shared,
    )


def weight_decay_collapse() -> Run:
    """Plain SGD with a weight decay that outweighs the loss."""
    spec, data = mlp(64, 64, 32, 10), digits(centred=True)
    optimizer = {"name": "sgd", "lr": 0.1, "weight_decay": 0.28}
    shared = classifier(spec, data, optimizer, train(spec, data, optimizer, seed=0, epochs=12, batch=32))
    checkpoints, rows = shared["checkpoints"], shared["facts"]["checkpoints"]
    initial = node_norms(checkpoints[0].state)
    for checkpoint, row in zip(checkpoints, rows, strict=True):
        ratios = {k: norm / initial[k] for k, norm in node_norms(checkpoint.state).items()}
        row["norm_ratio"] = {k: rounded(float(ratio.median())) for k, ratio in ratios.items()}
        row["below_1e-3"] = {k: int((ratio < 1e-3).sum()) for k, ratio in ratios.items()}
    shrunk = rows[-1]["below_1e-3"]
    first = next(row["epoch"] for row in rows if row["below_1e-3"]["0"] == initial["0"].numel())
    heads = [f'median norm ratio of "{k}"' for k in initial]
    cells = [[*outline(row), *(f"{ratio:.1e}" for ratio in row["norm_ratio"].values())] for row in rows]
    return Run(
        name="weight_decay_collapse",
        network="MLP 64-64-32-10, ReLU",
        verdict=f'Collapsing under weight decay: at the end {shrunk["0"]} of 64 nodes of layer "0" and '
        f'{shrunk["2"]} of 32 of layer "2" have less than a thousandth of their initial norm; known by '
        "comparing the norms of weights and bias with those of epoch 0.",
        story="SGD, learning rate 0.1, weight decay 0.28 (coupled, biases too), batches of 32. It first "
        f"learns, {rows[1]['accuracy']:.0%} right after epoch 1, and forgets while every hidden node "
        f'shrinks by about a factor of three an epoch. From epoch {first} on the whole of layer "0" is below '
        "a thousandth.\n\n" + table(["epoch", "loss", "right", *heads], cells),
        **shared,
    )


def small_cnn_bn() -> Run:
    """Two convolutions with BatchNorm."""
    conv = {"padding": 1}
    spec: Spec = [["Conv2d", 1, 8, 3, conv], ["BatchNorm2d", 8], ["ReLU"]]
    spec += [["Conv2d", 8, 16, 3, conv], ["BatchNorm2d", 16], ["ReLU"]]
    spec += [["MaxPool2d", 2], ["Flatten"], ["Linear", 256, 10]]
    flat = digits(centred=True)
    data = Digits(flat.train_x.view(-1, 1, 8, 8), flat.train_y, flat.held_x.view(-1, 1, 8, 8), flat.held_y)
    optimizer = {"name": "adam", "lr": 2e-3, "betas": [0.9, 0.999]}
    shared = classifier(spec, data, optimizer, train(spec, data, optimizer, seed=0, epochs=6, batch=32))
    last = shared["facts"]["checkpoints"][-1]
    return Run(
        name="small_cnn_bn",
        network="CNN 1-8-16-10, BatchNorm, ReLU",
        verdict=f"Nothing is wrong: {last['accuracy']:.1%} of the held-out digits are right after epoch "
        f"{last['epoch']} and {sum(last['dead'].values())} of 24 channels never rise above zero on them.",
        story="Adam, learning rate 2e-3, batches of 32. Counts are taken in evaluation mode, with running "
        "statistics.",
        **shared,
    )
