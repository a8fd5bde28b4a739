"""(d) What a monitor costs: processor time of steps that are measured, and of those between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

import nndiag

EVERY = 50
ROUNDS = 30


@dataclass(frozen=True)
class Overhead:
    """Seconds of one step without a monitor, of an ordinary one with it, and of one that is measured."""

    name: str
    without: float
    ordinary: float
    measured: float

    @property
    def share(self) -> float:
        """Of the time of training: what a measurement adds to its own step, and to the one that prepares it."""
        return (self.measured + self.ordinary - 2 * self.without) / EVERY / self.without


class _Transformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.inside, self.blocks, self.last = (
            nn.Linear(16, width),
            nn.TransformerEncoder(layer, 2),
            nn.Linear(width, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.inside(x)).mean(dim=1))


def _mlp(width: int) -> nn.Module:
    parts = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(*parts)


def _cnn(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, 10),
    )  # fmt: skip


class _Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.states, self.last = nn.LSTM(16, width, 2, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.states(x)[0][:, -1])


def overheads() -> Iterator[Overhead]:
    """Yield the costs for networks of several sizes."""
    torch.manual_seed(0)
    yield _overhead("MLP 64-256-256-10, batch 128", _mlp(256), torch.randn(128, 64))
    yield _overhead("MLP 64-1024-1024-10, batch 128", _mlp(1024), torch.randn(128, 64))
    yield _overhead(
        "CNN with BatchNorm, 16 and 32 channels of 32x32, batch 64", _cnn(16), torch.randn(64, 3, 32, 32)
    )
    yield _overhead("LSTM of 2 layers, 64 units, batch 32x24", _Recurrent(64), torch.randn(32, 24, 16))
    yield _overhead(
        "transformer of 2 blocks, width 64, batch 32x24", _Transformer(64), torch.randn(32, 24, 16)
    )
    yield _overhead(
        "transformer of 2 blocks, width 128, batch 64x48", _Transformer(128), torch.randn(64, 48, 16)
    )


def _overhead(name: str, model: nn.Module, x: Tensor) -> Overhead:
    """Measure rounds of steps, by turns without a monitor and with one: the machine has other things to do."""
    y = torch.randint(0, 10, (len(x),))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(monitor: nndiag.Monitor | None) -> float:
        begun = time.process_time()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if monitor is not None:
            monitor.step(loss)
        optimizer.step()
        return time.process_time() - begun

    without, ordinary, measured = [], [], []
    with nndiag.Monitor(model, every=4, optimizer=optimizer) as monitor:
        for _ in range(8):
            step(monitor)
        for _ in range(ROUNDS):
            without += [step(None) for _ in range(4)][1:]
            *_, before, last = [step(monitor) for _ in range(4)]
            ordinary.append(before)
            measured.append(last)
    return Overhead(name, median(without), median(ordinary), median(measured))
