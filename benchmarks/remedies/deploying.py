"""(c) Goal ``deploy``: what a network weighs and takes after it, and what that changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.lesions.cases import cases
from benchmarks.remedies.dying import by_decay, by_large_rate
from benchmarks.remedies.training import train_data
from nndiag.pipeline.in_memory import diagnose_model
from nndiag.remedies.plan import plan
from nndiag.surgery.deploying import deploy

_GONE = ("removed", "folded", "merged")


@dataclass(frozen=True)
class Saving:
    """One network before and after: parameters, operations a sample, seconds a batch, nodes gone, change."""

    name: str
    parameters: tuple[int, int]
    flops: tuple[float, float]
    seconds: tuple[float, float]
    gone: int
    nodes: int
    change: float


def savings() -> Iterator[Saving]:
    """Yield what deployment saves, of networks that died here and of checkpoints that others published."""
    data = train_data()
    yield saving("digits MLP, large learning rate", by_large_rate(0)[0], data)
    yield saving("digits MLP, weight decay", by_decay(0)[0], data)
    for case in cases(os.environ.get("NNDIAG_CASES")):
        y = case.data[1] if case.labels else None
        yield saving(case.name, case.model, (case.data[0], y))


def saving(name: str, model: nn.Module, data: tuple[Tensor, Tensor | None]) -> Saving:
    """Take out of a network what does nothing on its data."""
    x, y = data
    found = diagnose_model(model, x if y is None else (x, y), None, None, goal="deploy").checkpoints[0]
    made = deploy(model, [(x,)], plan(found, "deploy"))
    return Saving(
        name,
        (made.before.parameters, made.after.parameters),
        (made.before.flops, made.after.flops),
        (made.before.seconds, made.after.seconds),
        sum(one.did in _GONE for one in made.done),
        sum(layer.nodes for layer in found.layers),
        made.output_change,
    )
