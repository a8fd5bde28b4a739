"""How the directions that matrices share are found, and the projections on them: from rows, or from sums of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nndiag.spectrum.lead import Lead, Projections, Rows, Starts, Tally, shared_directions

SWEEPS = 2
"""Subspace iterations that find the directions: of one a tenth to a third fewer nodes are known at once, and a third
brings little."""
ROWS_AT_ONCE, NODES_AT_ONCE = 256, 256
"""Of so many rows all products of two coordinates are formed at once, of so many matrices the projections."""


class Leading:
    """What makes a lead, added up from rows that are shown several times, the same ones in every sweep.

    The directions are those of the largest eigenvalues of ``Σ_i A_i``, by subspace iteration from random ones.

    Args:
        nodes: how many matrices.
        size: rows of one.
        samples: what sums over the rows are divided by.
        like: gives dtype and device.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4.
    """

    def __init__(self, nodes: int, size: int, samples: int, like: Tensor) -> None:
        self._samples = samples
        self._directions, self._random = _drawn(size, samples, like)
        self._images = torch.zeros_like(self._directions)
        self._sweeps = 0
        shared = self._directions.shape[1]
        self._first, self._second = torch.triu_indices(shared, shared, device=like.device)
        self._entries = like.new_zeros(len(self._first), nodes)
        self._tally: Tally | None = None

    @property
    def found(self) -> bool:
        """Whether the directions are known, and the projections are what is added up."""
        return self._sweeps == SWEEPS

    def add(self, rows: Tensor, weights: Tensor, stay: bool = False) -> None:
        """Add rows ``x``, ``(rows, size)``, with weights ``h ≥ 0``, ``(rows, nodes)``; all of them, where they stay."""
        projected = rows @ self._directions
        if not self.found:
            self._images += rows.T @ projected.mul_(weights.sum(dim=1, keepdim=True))
            return
        rows_and_weights = (torch.split(x, ROWS_AT_ONCE) for x in (projected, weights))
        for some, own in zip(*rows_and_weights, strict=True):
            coordinates = some.T.contiguous()
            one, two = (coordinates.index_select(0, place) for place in (self._first, self._second))
            self._entries.addmm_(one.mul_(two), own)
        tally = Tally.of(rows, weights, stay)
        if self._tally is None:
            self._tally = tally
        else:
            self._tally.add(tally)

    def sweep(self) -> None:
        """Find better directions by the rows that were added."""
        self._directions = torch.linalg.qr(self._images)[0]
        self._images = torch.zeros_like(self._images)
        self._sweeps += 1

    def lead(self, traces: Tensor, tolerance: float, heaviest: Rows | None = None) -> tuple[Lead, Starts]:
        """Return what is known, once the projections are added up.

        Args:
            traces: of the matrices, ``(nodes,)`` float64.
            tolerance: how well the ends are to be known, relative to the largest.
            heaviest: the rows, where they stay.
        """
        assert self._tally is not None
        known = Projections(self._matrices(), self._directions, self._random)
        return known.lead(self._tally, self._samples, traces, tolerance, heaviest or self._tally)

    def _matrices(self) -> Iterator[Tensor]:
        """Yield the projections of some nodes after the others, both halves of them."""
        shared = self._directions.shape[1]
        place = torch.empty(shared, shared, dtype=torch.long, device=self._first.device)
        every = torch.arange(len(self._first), device=place.device)
        place[self._first, self._second] = place[self._second, self._first] = every
        for some in torch.split(self._entries, NODES_AT_ONCE, dim=1):
            entries = some.T.contiguous().div_(self._samples)
            yield entries.index_select(1, place.flatten()).view(-1, shared, shared)


def shared_lead(
    rows: Tensor, weights: Tensor, samples: int, traces: Tensor, tolerance: float
) -> tuple[Lead, Starts]:
    """Return what ``Leading`` finds of matrices whose rows are all at hand.

    Args:
        rows: ``x``, ``(rows, size)``.
        weights: ``h ≥ 0``, ``(rows, nodes)``.
        samples: what the sums are divided by.
        traces: of the matrices, ``(nodes,)`` float64.
        tolerance: how well the ends are to be known, relative to the largest.
    """
    leading = Leading(weights.shape[1], rows.shape[1], samples, rows)
    while not leading.found:
        leading.add(rows, weights)
        leading.sweep()
    leading.add(rows, weights, stay=True)
    return leading.lead(traces, tolerance, Rows(rows, weights))


def summed_lead(matrices: Tensor, tally: Tally, samples: int, traces: Tensor, tolerance: float) -> Lead:
    """Return the same of matrices that were added up, ``(nodes, size, size)``, and of whose rows a tally was kept."""
    every = matrices.sum(dim=0)
    directions, random = _drawn(len(every), samples, matrices)
    for _ in range(SWEEPS):
        directions = torch.linalg.qr(every @ directions)[0]
    parts = (directions.T @ (some @ directions) for some in torch.split(matrices, NODES_AT_ONCE))
    known = Projections(((part + part.mT) / 2 for part in parts), directions, random)
    return known.lead(tally, samples, traces, tolerance, tally)[0]


def _drawn(size: int, samples: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return random directions, and one random unit vector."""
    generator = torch.Generator().manual_seed(0)
    shared = shared_directions(size, samples)
    found = torch.randn(size, shared + 1, generator=generator, dtype=like.dtype).to(like.device)
    return found[:, :-1], found[:, -1] / found[:, -1].norm()
