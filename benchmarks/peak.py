"""One measurement in a process of its own, for its peak memory: started by the memory table, prints JSON.

``python -m benchmarks.peak WEIGHTS N SAMPLES BATCH DEVICE THREADS`` measures a ResNet of ``6N + 2`` layers.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import ResNet
from benchmarks.problems import images, seeded
from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level

BUDGET = 256 * 2**20
"""Bytes given to a measurement, where it can be told: less than the smaller probe wants, so that both are bounded."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """Bytes: of the probe, in use at most before measuring, and at most in all."""

    samples: int
    probe: int
    before: int
    most: int
    seconds: float
    budget: str


def main() -> None:
    weights, n, samples, batch, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(asdict(peak(weights, int(n), int(samples), int(batch), torch.device(device)))))


def peak(weights: str, n: int, samples: int, batch: int, device: torch.device) -> Peak:
    """Measure, and return the peaks before and after."""
    model = ResNet(n)
    model.load_state_dict(torch.load(weights, weights_only=True))
    x, y = (part.to(device) for part in images(samples, seeded()))
    probe = Probe((x,), y, named_loss("cross_entropy"), batch_size=batch)
    before = most_in_use(device)
    begun = time.perf_counter()
    settings, budget = bounded()
    measure(model.to(device), probe, Plan(Level.CURVATURE, **settings))
    seconds = time.perf_counter() - begun
    held = x.element_size() * x.numel() + y.element_size() * y.numel()
    return Peak(samples, held, before, most_in_use(device), seconds, budget)


def bounded() -> tuple[dict[str, Any], str]:
    """Return the plan's settings that bound its memory, and what is said of them."""
    if "memory_budget" in {field.name for field in fields(Plan)}:
        return {"memory_budget": BUDGET}, f"memory budget {BUDGET // 2**20} MiB"
    return {}, "no memory budget: there is none to be set yet"


def most_in_use(device: torch.device) -> int:
    """Return the most memory used so far: of the device's allocator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():  # ru_maxrss would start at the peak of the process that started this one
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
