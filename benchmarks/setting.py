"""How a run of the tables is set up, and how times are taken."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn import functional as F

from benchmarks.problems import Case
from nndiag.measures import Plan, measure
from nndiag.records.measured import Measured


@dataclass(frozen=True)
class Setting:
    """``quick`` takes smaller networks, to see that a table works: its figures mean nothing."""

    quick: bool
    device: torch.device

    @property
    def repeats(self) -> int:
        """How often a time is taken."""
        return 1 if self.quick else 3

    def say(self, text: str) -> None:
        """Tell on stderr what is being done."""
        print(f"  {text}", file=sys.stderr, flush=True)


Table = Callable[[Setting], list[str]]


@dataclass(frozen=True)
class Cost:
    """Medians of seconds: a plain forward and backward pass over the probe, and the two parts of a measurement."""

    unit: float
    capture: float
    solve: float

    @property
    def seconds(self) -> float:
        """Of the whole measurement."""
        return self.capture + self.solve

    @property
    def units(self) -> float:
        """The same in forward and backward passes."""
        return self.seconds / self.unit


def timed(case: Case, plan: Plan, repeats: int) -> tuple[Measured, Cost]:
    """Measure a case and time it, the plain passes in turn with the measurements so that noise hits both alike."""
    units, captures, solves = [], [], []
    forward_backward_seconds(case)  # the first pass also allocates
    for _ in range(repeats):
        units.append(forward_backward_seconds(case))
        run = measure(case.model, case.probe, plan)
        captures.append(run.timing.capture_s or 0.0)
        solves.append(run.timing.curvature_s or 0.0)
        units.append(forward_backward_seconds(case))
    return run, Cost(median(units), median(captures), median(solves))


def forward_backward_seconds(case: Case) -> float:
    """Time one plain forward and backward pass over the probe: the unit of all tables."""
    parameters = list(case.model.parameters())
    begun = clock(case.probe.inputs[0].device)
    for batch in case.probe.batches():
        assert batch.targets is not None
        loss = F.cross_entropy(case.model(*batch.inputs), batch.targets)
        torch.autograd.grad(loss, parameters, allow_unused=True)
    return clock(case.probe.inputs[0].device) - begun


def clock(device: torch.device) -> float:
    """Return the time once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
