"""Small networks with nodes in trouble, and what surgery is given to work on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.remedies.plan import Treatment
from nndiag.surgery.training.record import Treated
from nndiag.surgery.training.treating import treat
from nndiag.surgery.training.trial import Limit
from nndiag.surgery.training.ward import Ward

SAMPLES, CLASSES = 64, 4
Build = Callable[[], nn.Module]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, CLASSES))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.GELU(), nn.Linear(9, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 4, CLASSES),
    )  # fmt: skip


class Odd(nn.Module):
    """Groups, a transposed convolution, a concatenation, and means over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.side = nn.Linear(2, 5)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.up(F.relu(self.grouped(F.relu(self.stem(x))))))
        z = self.side(x.mean(dim=(2, 3))).clamp(min=0)
        return self.head(torch.cat([z, y.mean(dim=(2, 3))], dim=1))


class Columns(nn.Module):
    """Positions beside features, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(6, 10), nn.Linear(6, 10)
        self.down = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 2, -1)[:, :, :6]
        return self.down(F.relu(self.gate(x)) * self.up(x)).transpose(1, 2).flatten(1)[:, :CLASSES]


class Residual(nn.Module):
    """The units of ``stem`` and ``second`` go into a sum; those of ``first`` are heard by ``second`` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Linear(6, 8), nn.Linear(8, 8)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(x + self.second(F.relu(self.first(x))))


class Recurrent(nn.Module):
    """Recurrent layers one above the other, of whose last states some are taken."""

    def __init__(self, kind: str, layers: int, both_ways: bool, **options: object) -> None:
        super().__init__()
        self.kind = kind
        self.layer = getattr(nn, kind)(4, 6, layers, batch_first=True, bidirectional=both_ways, **options)
        width = self.layer.proj_size or 6
        self.head = nn.Linear(width * (2 if both_ways else 1), CLASSES)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs, ends = self.layer(x)
        last = ends[0] if self.kind == "LSTM" else ends
        return self.head(outputs.mean(dim=1)) + self.last(torch.tanh(last[-1]))


class Cells(nn.Module):
    """A cell that is stepped by hand, behind a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.cell, self.head = nn.Linear(4, 7), nn.LSTMCell(7, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(len(x), 6), x.new_zeros(len(x), 6))
        for t in range(x.shape[1]):
            state = self.cell(F.relu(self.before(x[:, t])), state)
        return self.head(state[0])


class Attention(nn.Module):
    """An attention whose inputs are heard by nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.before(x))
        return self.head(F.gelu(self.attention(x, x, x, need_weights=False)[0]).mean(dim=1))


NETWORKS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "smooth": (smooth, (6,)),
    "cnn": (cnn, (2, 6, 6)),
    "odd": (Odd, (2, 8, 8)),
    "columns": (Columns, (12,)),
    "residual": (Residual, (6,)),
    "rnn": (lambda: Recurrent("RNN", 1, False, nonlinearity="relu"), (5, 4)),
    "gru": (lambda: Recurrent("GRU", 2, False), (5, 4)),
    "lstm": (lambda: Recurrent("LSTM", 2, True), (5, 4)),
    "projected": (lambda: Recurrent("LSTM", 1, True, proj_size=3), (5, 4)),
    "cells": (Cells, (5, 4)),
    "attention": (Attention, (5, 4)),
}


def network(name: str) -> tuple[nn.Module, Probe]:
    """Return a seeded network with statistics of its own, and a probe for it."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    x = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(1))
    y = torch.arange(SAMPLES) % CLASSES
    with torch.no_grad():
        for _ in range(3):
            model(x)  # norms take the statistics of the data
    return model.eval(), Probe((x,), y, named_loss("cross_entropy"))


def ward(model: nn.Module, probe: Probe, **options: object) -> Ward:
    return Ward(model, probe, 0, **options)  # type: ignore[arg-type]


def anew(layer: str, nodes: Iterable[int], code: str = "ND201", twin: int | None = None) -> list[Treatment]:
    return [Treatment(layer, node, code, "reinitialise", "dead", twin) for node in nodes]


def treated(place: Ward, treatments: list[Treatment], share: float = 0.01) -> Treated:
    return treat(place, treatments, Limit(place.replay(), share))


def outputs(model: nn.Module, probe: Probe) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(*probe.inputs))


def apart(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())
