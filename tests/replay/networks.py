"""Small networks around one layer, ``first``, whose units the tests follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, Measured

SAMPLES = 12


class Between(nn.Module):
    """``last(flatten(middle(first(x))))``: ``middle`` is handed the module too, for its parameters."""

    def __init__(self, first: nn.Module, middle: Callable[[Tensor, Between], Tensor], width: int = 6) -> None:
        super().__init__()
        self.first = first
        self.middle = middle
        self.last = nn.Linear(width, 3)
        self.gain = nn.Parameter(torch.tensor([1.5, -2.0, 0.5, 1.0, -0.3, 0.8]))
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        self.prelu = nn.PReLU(6)
        self.norm = nn.BatchNorm1d(6)
        self.norm2d = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.4)
        for norm in (self.norm, self.norm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x), self).flatten(1))


def inputs(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def measured(
    model: nn.Module, x: Tensor, level: Level = Level.ACTIVATIONS, loss: str | None = "cross_entropy"
) -> Measured:
    targets = torch.arange(len(x)) % 3
    if loss is None:
        return measure(model, Probe((x,), None, None, batch_size=8), Plan(level))
    return measure(model, Probe((x,), targets, named_loss(loss), batch_size=8), Plan(level))


def layer(found: Measured, name: str) -> LayerMeasures:
    return next(one for one in found.layers if one.name == name)
