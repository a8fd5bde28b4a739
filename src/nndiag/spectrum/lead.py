"""What matrices that share their rows tell of their spectra before any of them is multiplied.

``A_i = (1/N) Σ_n h_{n,i} x_n x_nᵀ`` with ``h ≥ 0``: where few directions hold most of the rows, a projection of every
matrix on these costs less than one product, and often proves which eigenvalue is the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

DIRECTIONS = 8
"""How many directions are shared: with 16 a product less is made of every tenth matrix, and the projections take four
times as long."""
SWEEPS = 2
"""Subspace iterations that find them: a second one proves more."""
SQUARINGS = 6
"""How often a projection is squared to find its largest eigenvalue: to within ``DIRECTIONS ** (1 / 64)``, 3 %."""
WORTH = 64
"""Of fewer matrices the projections take longer than the products that they save."""


def worth_leading(nodes: int, size: int, samples: int) -> bool:
    """Whether a stack of so many matrices of a mean over samples is worth looking at beforehand."""
    return nodes >= WORTH and min(size, samples) >= 2 * DIRECTIONS


@dataclass
class Tally:
    """What is noted of the weights ``h ≥ 0`` of rows ``x`` as they come, for every matrix.

    ``single`` is the largest ``h_{n,i} ‖x_n‖²``, which no largest eigenvalue of ``Σ_n h_{n,i} x_n x_nᵀ`` is below;
    ``positive`` how many weights are, which no rank is above.
    """

    single: Tensor  # (nodes,)
    positive: Tensor  # (nodes,)

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor) -> Tally:
        """Return what there is to note of ``(rows, size)`` and ``(rows, nodes)``."""
        single = (weights * rows.square().sum(dim=1, keepdim=True)).amax(dim=0)
        return cls(single, torch.count_nonzero(weights, dim=0))

    def add(self, other: Tally) -> None:
        """Take further rows into account."""
        self.single = torch.maximum(self.single, other.single)
        self.positive = self.positive + other.positive


@dataclass(frozen=True)
class Lead:
    """What is known of a stack of positive semidefinite matrices beforehand.

    ``vectors`` are unit vectors, near the eigenvectors of the largest eigenvalues where they are ``near``. The largest
    eigenvalue is at least ``least``, the second largest at least ``second`` and at most ``others``: a value beside an
    eigenvalue, and above ``others``, is the largest. The smallest is zero where the rank is ``short`` of the size.
    """

    vectors: Tensor  # (nodes, size)
    near: Tensor  # (nodes,) bool
    least: Tensor  # (nodes,) float64
    second: Tensor  # (nodes,) float64
    others: Tensor  # (nodes,) float64
    short: Tensor  # (nodes,) bool

    def restricted(self, index: Tensor) -> Lead:
        """Return what is known of these matrices alone."""
        return Lead(*(getattr(self, field.name)[index] for field in fields(self)))


class Leading:
    """What makes a lead, added up from rows that are shown several times, the same ones in every sweep.

    ``A_i = (1/count) Σ_n h_{n,i} x_n x_nᵀ`` is projected on directions that hold most of ``Σ_i A_i``. With
    ``B = QᵀAQ`` for an orthonormal ``Q``, the eigenvalues ``θ_j`` of ``B`` are at most those of ``A`` (Cauchy), and
    every vector orthogonal to some ``Qu`` has a Rayleigh quotient of at most ``θ + tr A − tr B``, where ``θ`` is the
    largest eigenvalue of ``B`` on the complement of ``u``, since what is outside of ``Q`` has no larger eigenvalue than
    its trace; so the second eigenvalue of ``A`` is at most that (Courant and Fischer).

    Args:
        nodes: how many matrices.
        size: rows of one.
        like: gives dtype and device.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4, for the directions; Horn and Johnson, Matrix Analysis,
    2nd ed., theorem 4.2.6 and observation 7.1.2.
    """

    def __init__(self, nodes: int, size: int, like: Tensor) -> None:
        self._directions = _drawn(size, like)
        self._images = torch.zeros_like(self._directions)
        self._sweeps = 0
        first, other = torch.triu_indices(DIRECTIONS, DIRECTIONS, device=like.device)
        self._pairs = first, other
        self._entries = torch.zeros(nodes, len(first), dtype=torch.float64, device=like.device)
        self._tally: Tally | None = None

    @property
    def found(self) -> bool:
        """Whether the directions are known, and the projections are what is added up."""
        return self._sweeps == SWEEPS

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Add rows ``x``, ``(rows, size)``, with weights ``h ≥ 0``, ``(rows, nodes)``."""
        projected = rows @ self._directions
        if not self.found:
            self._images += rows.T @ projected.mul_(weights.sum(dim=1, keepdim=True))
            return
        first, other = self._pairs
        self._entries += weights.T @ (projected[:, first] * projected[:, other])
        tally = Tally.of(rows, weights)
        if self._tally is None:
            self._tally = tally
        else:
            self._tally.add(tally)

    def sweep(self) -> None:
        """Find better directions by the rows that were added."""
        self._directions = torch.linalg.qr(self._images)[0]
        self._images = torch.zeros_like(self._images)
        self._sweeps += 1

    def lead(self, count: int, traces: Tensor) -> Lead:
        """Return what is known, once the projections are added up.

        Args:
            count: what the sums are divided by.
            traces: of the matrices, ``(nodes,)`` float64.
        """
        first, other = self._pairs
        matrices = self._entries.new_empty(len(traces), DIRECTIONS, DIRECTIONS)
        matrices[:, first, other] = matrices[:, other, first] = self._entries / count
        assert self._tally is not None
        return _lead(matrices, self._directions, self._tally, count, traces)


def shared_lead(rows: Tensor, weights: Tensor, count: int, traces: Tensor) -> Lead:
    """Return what ``Leading`` finds of matrices whose rows are all at hand.

    Args:
        rows: ``x``, ``(rows, size)``.
        weights: ``h ≥ 0``, ``(rows, nodes)``.
        count: what the sums are divided by.
        traces: of the matrices, ``(nodes,)`` float64.
    """
    leading = Leading(weights.shape[1], rows.shape[1], rows)
    while not leading.found:
        leading.add(rows, weights)
        leading.sweep()
    leading.add(rows, weights)
    return leading.lead(count, traces)


def summed_lead(matrices: Tensor, tally: Tally, count: int, traces: Tensor) -> Lead:
    """Return the same of matrices that were added up, ``(nodes, size, size)``, and of whose rows a tally was kept."""
    every = matrices.sum(dim=0)
    directions = _drawn(len(every), matrices)
    for _ in range(SWEEPS):
        directions = torch.linalg.qr(every @ directions)[0]
    projected = (directions.T @ (matrices @ directions)).double()
    return _lead((projected + projected.mT) / 2, directions, tally, count, traces)


def _drawn(size: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, DIRECTIONS, generator=generator, dtype=like.dtype).to(like.device)


def _lead(matrices: Tensor, directions: Tensor, tally: Tally, count: int, traces: Tensor) -> Lead:
    """Return what projections ``B`` say, ``(nodes, DIRECTIONS, DIRECTIONS)`` float64."""
    first, _ = _top(matrices)
    projector = torch.eye(DIRECTIONS, dtype=matrices.dtype, device=matrices.device) - _outer(first)
    other, bound = _top(projector @ matrices @ projector)
    images = matrices @ torch.stack([first, other], dim=2)
    value, cross = (torch.linalg.vecdot(x, images[:, :, 0]) for x in (first, other))
    second = torch.linalg.vecdot(other, images[:, :, 1])
    half = (value - second) / 2
    single = tally.single.double() / count
    outside = (traces - matrices.diagonal(dim1=1, dim2=2).sum(dim=1)).clamp_min(0)
    return Lead(
        vectors=first.to(directions) @ directions.T,
        near=value >= single,
        least=torch.fmax(value, single),
        second=value - half - torch.hypot(half, cross),
        others=bound + outside,
        short=tally.positive < len(directions),
    )


def _top(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors near the eigenvectors of the largest eigenvalues, and what these are at most.

    By squaring: with ``p = 2 ** SQUARINGS``, ``(tr Mᵖ)^{1/p}`` is at least the largest eigenvalue of a semidefinite
    ``M``, and at most ``size^{1/p}`` times it. Many times faster than all eigenvalues of each.

    Args:
        matrices: positive semidefinite, ``(nodes, size, size)``.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    traces = matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
    logarithm = traces.clamp_min(tiny).log()
    power = matrices / traces.clamp_min(tiny)[:, None, None]
    for step in range(SQUARINGS):
        power = power @ power
        traces = power.diagonal(dim1=1, dim2=2).sum(dim=1)
        logarithm = logarithm + traces.clamp_min(tiny).log() / 2 ** (step + 1)
        power = power / traces.clamp_min(tiny)[:, None, None]
    heaviest = power.diagonal(dim1=1, dim2=2).argmax(dim=1)
    found = power.gather(2, heaviest[:, None, None].expand(-1, power.shape[1], 1))[:, :, 0]
    return found / found.norm(dim=1, keepdim=True).clamp_min(tiny), logarithm.exp()


def _outer(vectors: Tensor) -> Tensor:
    return vectors[:, :, None] * vectors[:, None, :]
