"""(b) Plasticity: labels that are shuffled again and again, and whether a network still learns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

import nndiag
from benchmarks.remedies import redo
from benchmarks.remedies.dying import INITIALISER
from benchmarks.remedies.training import Data, accuracy, dormant_share, network, train, train_data
from nndiag.monitor import HealingSettings

TASKS, STEPS = 10, 120
SAMPLES = 400
LR = 4e-3


@dataclass(frozen=True)
class Course:
    """Of every task, in order: accuracy on its own samples when it ends, and the share of dormant units then."""

    accuracies: tuple[float, ...]
    dormant: tuple[float, ...]


def task(seed: int, number: int) -> Data:
    """Return the same inputs with the labels of a task: a permutation of all of them."""
    x, y = (part[:SAMPLES] for part in train_data())
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1000 * seed + number))
    return x, y[order]


def nothing(seed: int) -> Course:
    model = network(seed)
    return _course(model, torch.optim.Adam(model.parameters(), lr=LR), seed)


def healing(seed: int) -> Course:
    """A monitor that heals, on the inputs alone: of what the labels are now it is told by gradients."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    settings = HealingSettings(initialiser=INITIALISER)
    with nndiag.Monitor(model, every=25, optimizer=optimizer, heal=settings) as monitor:
        return _course(model, optimizer, seed, before_step=monitor.step)


def recycling(seed: int) -> Course:
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    x = train_data()[0][:SAMPLES]

    def after(step: int) -> None:
        if step % redo.EVERY == 0:
            redo.recycle(model, optimizer, x, 0.025)

    return _course(model, optimizer, seed, after_step=after)


ARMS: Mapping[str, Callable[[int], Course]] = {
    "nothing": nothing,
    "Monitor, every 25": healing,
    "ReDo, every 50, τ = 0.025": recycling,
}


def _course(
    model: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    seed: int,
    before_step: Callable[[torch.Tensor], object] = lambda loss: None,
    after_step: Callable[[int], None] = lambda step: None,
) -> Course:
    accuracies, dormant = [], []
    for number in range(TASKS):
        data = task(seed, number)
        train(model, optimizer, data, STEPS, seed, before_step=before_step, after_step=after_step)
        accuracies.append(accuracy(model, data))
        dormant.append(dormant_share(model, data[0]))
    return Course(tuple(accuracies), tuple(dormant))
