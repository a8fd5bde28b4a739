"""Samples that take about as many backward passes as each other go through the network together.

A backward pass takes all the samples of its forward pass. So the samples of a batch are put in order of their passes
and cut into groups, each with a forward pass of its own, unless it is cheaper to leave the batch as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

FORWARD, INPUTS = 0.6, 0.5
"""Cost of a sample's forward pass, and of what is made of its inputs, over a backward pass and what is kept of it."""
PASS_OVERHEAD, GROUP_OVERHEAD = 3, 20
"""Cost of a backward pass, and of a group, beside that of its samples: that of so many samples."""


def grouped(passes: Tensor, folds: Tensor, rows: int) -> Iterator[Tensor | None]:
    """Yield groups that are cheap together, by rows of the batch; ``None`` for all of them in their order.

    Args:
        passes: of each sample, ``(batch,)``. Samples without any are in no group; where none has one, the first
            sample is a group all the same.
        folds: of the samples, ``(batch,)``; those of a group come fold after fold.
        rows: the largest number of samples times passes in a group that is not all of them, nor a single one.
    """
    counts, order = torch.sort(passes, descending=True, stable=True)
    values, sizes = (x.tolist() for x in torch.unique_consecutive(counts, return_counts=True))
    if values[0] == 0:
        yield order[:1]
        return
    cuts, cost = _cuts(values, sizes)
    if cost_of(len(passes), values[0]) - FORWARD * len(passes) <= cost:
        yield None
        return
    ends = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    for begin, end in pairwise(cuts):
        for samples in torch.split(order[ends[begin] : ends[end]], max(1, rows // values[begin])):
            yield samples[torch.argsort(folds.to(samples.device)[samples], stable=True)]


def _cuts(values: list[int], sizes: list[int]) -> tuple[list[int], float]:
    """Return where to cut a falling list of numbers of passes, and what all groups cost; zeros are left out."""
    known = len(values) - (values[-1] == 0)
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, known + 1):
        options = []
        for begin in range(end):
            options.append((best[begin][0] + cost_of(sum(sizes[begin:end]), values[begin]), begin))
        best.append(min(options))
    cuts = [known]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return cuts[::-1], best[known][0]


def cost_of(members: int, passes: int) -> float:
    """Return what a group costs, in backward passes of a sample."""
    return members * (FORWARD + INPUTS + passes) + PASS_OVERHEAD * passes + GROUP_OVERHEAD
