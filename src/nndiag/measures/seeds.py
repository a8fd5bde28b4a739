"""The backward passes that carry a batch's loss curvature, each made when it is wanted.

Signs are independent between samples and passes. What is drawn is therefore independent between the folds of
the probe, and the standard error of ``λ_max`` over the folds holds the noise of the signs beside that of the samples.
They belong to a sample and a pass: seeds may be made again, in any order, and for some samples at a time. Passes left
to chance are a systematic sample: of samples that are alike, one in so many makes them, so that what chance adds up is
more even than if each were drawn by itself (on a trained ResNet-20 half the standard deviation, at every quantile of
the nodes), and the standard error errs on the side of caution.

``λ_max`` of a noisy matrix is too large in the mean, by about ``5 se²/λ`` on networks with positions (measured: 0.8 %
at an error of 3.4 %, 6 % at 12 %): far within ``se`` where ``se`` is small, so nothing is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.measures.allotment import CHANCE, Allotment, allot
from nndiag.measures.grouping import grouped
from nndiag.measures.signs import SampleSigns
from nndiag.probe.factor import Draw, Factor

COVERAGE = 0.99
"""Share of the trace that is taken exactly, where the passes allow it."""
PASSES = 32
"""The most passes where columns share them."""
TOGETHER = 2**16
"""Seeds with up to so many signs or numbers are made together: what small ones take is the calling."""


@dataclass(frozen=True)
class Group:
    """Samples that take as many backward passes as each other, after one forward pass of theirs.

    ``samples`` are rows of the batch, ``None`` where they are all of them in their order, so that the forward pass of
    the batch does. ``seeds`` are made when they are asked for: ``(passes, rows, …)``, each like the output.
    """

    samples: Tensor | None
    seeds: Iterator[Tensor]


class Seeds:
    """All the seeds of a batch: ``Σ`` over them of ``s sᵀ`` is ``B_n``, exactly or in the mean.

    Args:
        factor: the curvature of the loss in the output.
        noise: accepted standard deviation as a share of the trace; 0 takes everything exactly that can be.
        generator: source of the signs.
        own_noise: accepted standard deviation of a sample by itself, as a share of its own trace.
        coverage: share of the trace to be taken exactly, where ``limit`` allows it.
        limit: the most passes where columns share them.
        first: place of the first sample in the probe, to which its signs belong.
        alike: a number for every sample, ``(batch,)``, the same for those whose passes are likely to show much the
            same, such as the class that is predicted.
    """

    def __init__(
        self,
        factor: Factor,
        noise: float,
        generator: torch.Generator,
        *,
        own_noise: float = 1.0,
        coverage: float = COVERAGE,
        limit: int = PASSES,
        first: int = 0,
        alike: Tensor | None = None,
    ) -> None:
        self._factor, self._signs, self._first = factor, SampleSigns(generator), first
        self._alone = noise <= 0
        self._allotment: Allotment = allot(
            factor.weights, factor.ranks, noise=noise, own_noise=own_noise, coverage=coverage, limit=limit
        )
        self._passes = self._allotment.passes
        if bool(self._allotment.chance.any()):
            self._passes = self._passes - (self._allotment.chance & ~self._lucky(alike)).long()
        self.exact, self.variance = self._allotment.exact, self._allotment.variance
        self.total, self.negative = factor.total, factor.negative

    def _lucky(self, alike: Tensor | None) -> Tensor:
        """Return which samples make the pass that is left to chance, ``(batch,)``: a systematic sample."""
        allotment, every = self._allotment, round(1 / CHANCE)
        left = torch.nonzero(allotment.chance).flatten()
        by_chance = allotment.place[left] == allotment.passes[left, None] - 1
        order = torch.argsort((self._factor.weights[left] * by_chance).sum(dim=1), stable=True)
        if alike is not None:
            order = order[torch.argsort(alike[left][order], stable=True)]
        owner = torch.tensor([self._first], device=left.device)
        bits = self._signs.draw(owner, -1, 32).eq(1).long() << torch.arange(32, device=left.device)
        lucky = torch.zeros_like(allotment.chance)
        lucky[left[order[int(bits.sum()) % every :: every]]] = True
        return lucky

    @property
    def expected(self) -> float:
        """How many backward passes a sample takes in the mean."""
        return float(self._allotment.expected.mean())

    @property
    def samples(self) -> float:
        """The share of the samples that take any, in the mean."""
        return float(self._allotment.expected.clamp_max(1).mean())

    def held(self, batch: int) -> int:
        """Return the most bytes that the seeds of so many such samples are made from."""
        return self._factor.held(batch)

    def groups(self, rows: int, folds: Tensor, part: slice = slice(None)) -> Iterator[Group]:
        """Yield all samples, or a part of them, whose places are then counted from its start.

        Args:
            rows: a group takes at most so many passes of a sample, all together.
            folds: of the samples of the part; those of a group come fold after fold.
            part: of the batch.
        """
        every = torch.arange(len(self._passes), device=self._passes.device)[part]
        for samples in grouped(self._passes[part], folds, rows):
            own = every if samples is None else every[samples]
            yield Group(samples, self._seeds(own))

    def _seeds(self, samples: Tensor) -> Iterator[Tensor]:
        place, passes = self._allotment.place.index_select(0, samples), self._passes[samples]
        place = torch.where(place < passes[:, None], place, -1)
        numbers = torch.arange(max(1, int(passes.max())), device=samples.device)
        each = len(samples) * max(place.shape[1], self._factor.entries)
        for some in torch.split(numbers, max(1, TOGETHER // max(1, each))):
            used = (place == some[:, None, None]).flatten(0, 1)
            seeds = self._seed(samples.repeat(len(some)), used, some.repeat_interleave(len(samples)))
            yield from seeds.unflatten(0, (len(some), -1))  # type: ignore[no-untyped-call]

    def _seed(self, samples: Tensor, used: Tensor, places: Tensor) -> Tensor:
        if self._alone:
            return self._factor.combine(used.float(), samples, self._drawing(samples, places))
        by_chance = self._allotment.chance[samples] & (places == self._allotment.passes[samples] - 1)
        signs = self._signs.draw(samples + self._first, 2 * places, used.shape[1]) * used
        signs[by_chance] *= CHANCE**-0.5
        return self._factor.combine(signs, samples, self._drawing(samples, places))

    def _drawing(self, samples: Tensor, places: Tensor) -> Draw:
        """Return what draws the signs within mixtures."""
        owners = samples + self._first
        return lambda rows, count: self._signs.draw(owners[rows], 2 * places[rows] + 1, count)
