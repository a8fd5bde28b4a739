"""What a network costs: parameters, floating-point operations, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nndiag.surgery.deploying.following import plain_functions

RUNS = 3
"""Passes that are timed, after one that is not."""
SAMPLES = 64
"""The first samples of a batch, which they take."""


@dataclass(frozen=True)
class Cost:
    """Parameters, floating-point operations of matrix products and convolutions per sample, and seconds of one forward
    pass over some samples: the median of a few.
    """

    parameters: int
    flops: float
    seconds: float


def cost(model: nn.Module, batch: Sequence[Tensor]) -> Cost:
    """Measure a network on the first samples of a batch.

    Args:
        model: in the mode in which it is used.
        batch: positional inputs, samples first.
    """
    counter, batch = FlopCounterMode(display=False), [x[:SAMPLES] for x in batch]
    with plain_functions(), counter:  # of a fused layer nothing would be counted
        _run(model, batch)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        _run(model, batch)
        seconds = [_run(model, batch) for _ in range(RUNS)]
    flops = counter.get_total_flops() / max(len(batch[0]), 1)
    return Cost(sum(p.numel() for p in model.parameters()), flops, median(seconds))


def _run(model: nn.Module, batch: Sequence[Tensor]) -> float:
    inputs = [x.clone() for x in batch]
    begun = time.perf_counter()
    model(*inputs)
    if batch[0].device.type == "cuda":
        torch.cuda.synchronize(batch[0].device)
    return time.perf_counter() - begun
