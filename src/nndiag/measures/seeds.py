"""The backward passes that carry a batch's loss curvature, each made when it is wanted.

Signs are independent between samples, passes and batches. What is drawn is therefore independent between the folds of
the probe, and the standard error of ``λ_max`` over the folds holds the noise of the signs beside that of the samples.

``λ_max`` of a noisy matrix is too large in the mean, by about ``5 se²/λ`` on networks with positions (measured: 0.8 %
at an error of 3.4 %, 6 % at 12 %): far within ``se`` where ``se`` is small, so nothing is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nndiag.measures.allotment import Allotment, allot
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
        generator: source of the signs. They are drawn as seeds are made: take ``whole`` first, then ``picked``.
        coverage: share of the trace to be taken exactly, where ``limit`` allows it.
        limit: the most passes where columns share them.
    """

    def __init__(
        self,
        factor: Factor,
        noise: float,
        generator: torch.Generator,
        *,
        coverage: float = COVERAGE,
        limit: int = PASSES,
    ) -> None:
        self._factor, self._generator = factor, generator
        self._allotment: Allotment = allot(
            factor.weights, factor.ranks, noise=noise, coverage=coverage, limit=limit
        )
        self.exact = self._allotment.exact

    @property
    def whole_count(self) -> int:
        """How many passes all samples take together."""
        return self._allotment.whole

    @property
    def picked_count(self) -> int:
        """How many rows are picked beside them."""
        return int(self._allotment.passes.sum()) - self.whole_count * len(self._allotment.passes)

    def whole(self) -> Iterator[Seed]:
        """Yield the seeds for all samples."""
        every = torch.arange(len(self._allotment.passes), device=self._factor.weights.device)
        for place in range(self.whole_count):
            yield self._seed(every, torch.full_like(every, place))

    def picked(self, rows: int) -> Iterator[Seed]:
        """Yield seeds of at most so many rows, for samples that need more; one sample may be in them several times."""
        extra = self._allotment.passes - self.whole_count
        samples = torch.arange(len(extra), device=extra.device).repeat_interleave(extra)
        first = (extra.cumsum(0) - extra).repeat_interleave(extra)
        places = self.whole_count + torch.arange(len(samples), device=extra.device) - first
        for chosen, place in zip(torch.split(samples, rows), torch.split(places, rows), strict=True):
            if len(chosen):
                yield self._seed(chosen, place)

    def _seed(self, samples: Tensor, places: Tensor) -> Seed:
        used = self._allotment.place[samples] == places[:, None]
        signs = self._draw(tuple(used.shape)).to(used.device) * used
        return Seed(self._factor.combine(signs, samples, self._draw), samples)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return random_signs(shape, self._generator)


def random_signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return independent signs ±1 of this shape, float32: eight of them from a random byte."""
    count = prod(shape)
    drawn = torch.randint(0, 256, (-(-count // 8),), generator=generator)
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return (2.0 * bits - 1)[drawn].flatten()[:count].reshape(shape)
