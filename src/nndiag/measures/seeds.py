"""The backward passes that carry a batch's loss curvature, each made when it is wanted.

Signs are independent between samples and passes. What is drawn is therefore independent between the folds of
the probe, and the standard error of ``λ_max`` over the folds holds the noise of the signs beside that of the samples.
They belong to a sample and a pass: seeds may be made again, in any order, and for some samples at a time.

``λ_max`` of a noisy matrix is too large in the mean, by about ``5 se²/λ`` on networks with positions (measured: 0.8 %
at an error of 3.4 %, 6 % at 12 %): far within ``se`` where ``se`` is small, so nothing is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.measures.allotment import Allotment, allot
from nndiag.measures.signs import SampleSigns
from nndiag.probe.factor import Factor

COVERAGE = 0.99
"""Share of the trace that is taken exactly, where the passes allow it."""
PASSES = 32
"""The most passes where columns share them."""


@dataclass(frozen=True)
class Seed:
    """The seed of one backward pass.

    ``values`` is ``(rows, …)`` like the output, ``samples`` the rows of the batch it belongs to, ``(rows,)``.
    """

    values: Tensor
    samples: Tensor


class Seeds:
    """All the seeds of a batch: ``Σ`` over them of ``s sᵀ`` is ``B_n``, exactly or in the mean.

    Args:
        factor: the curvature of the loss in the output.
        noise: accepted standard deviation as a share of the trace; 0 takes everything exactly that can be.
        generator: source of the signs.
        coverage: share of the trace to be taken exactly, where ``limit`` allows it.
        limit: the most passes where columns share them.
        first: place of the first sample in the probe, to which its signs belong.
    """

    def __init__(
        self,
        factor: Factor,
        noise: float,
        generator: torch.Generator,
        *,
        coverage: float = COVERAGE,
        limit: int = PASSES,
        first: int = 0,
    ) -> None:
        self._factor, self._signs, self._first = factor, SampleSigns(generator), first
        self._allotment: Allotment = allot(
            factor.weights, factor.ranks, noise=noise, coverage=coverage, limit=limit
        )
        self.exact = self._allotment.exact
        self.total, self.negative = factor.total, factor.negative

    @property
    def whole_count(self) -> int:
        """How many passes all samples take together."""
        return self._allotment.whole

    @property
    def picked_count(self) -> int:
        """How many rows are picked beside them."""
        return int(self._allotment.passes.sum()) - self.whole_count * len(self._allotment.passes)

    def whole(self, part: slice = slice(None)) -> Iterator[Seed]:
        """Yield the seeds for all samples, or for a part of them; places are counted from its start."""
        every = torch.arange(len(self._allotment.passes), device=self._factor.weights.device)[part]
        for place in range(self.whole_count):
            yield self._seed(every, torch.full_like(every, place), every[:1])

    def picked(self, rows: int, part: slice = slice(None)) -> Iterator[Seed]:
        """Yield seeds of at most so many rows, for samples that need more; one sample may be in them several times."""
        every = torch.arange(len(self._allotment.passes), device=self._factor.weights.device)[part]
        extra = self._allotment.passes[part] - self.whole_count
        samples = every.repeat_interleave(extra)
        first = (extra.cumsum(0) - extra).repeat_interleave(extra)
        places = self.whole_count + torch.arange(len(samples), device=extra.device) - first
        for chosen, place in zip(torch.split(samples, rows), torch.split(places, rows), strict=True):
            if len(chosen):
                yield self._seed(chosen, place, every[:1])

    def _seed(self, samples: Tensor, places: Tensor, start: Tensor) -> Seed:
        used = self._allotment.place[samples] == places[:, None]
        owners = samples + self._first

        def draw(rows: Tensor, count: int) -> Tensor:
            return self._signs.draw(owners[rows], 2 * places[rows] + 1, count)

        signs = self._signs.draw(owners, 2 * places, used.shape[1]) * used
        return Seed(self._factor.combine(signs, samples, draw), samples - start)
