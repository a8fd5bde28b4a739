"""What matrices that share their rows tell of their spectra before any of them is multiplied.

``A_i = (1/N) Σ_n h_{n,i} x_n x_nᵀ`` with ``h ≥ 0``: where few directions hold most of the rows, a projection of every
matrix on these costs less than one product, often holds the eigenvector of its largest eigenvalue almost whole, and
proves that no other eigenvalue is larger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from nndiag.spectrum.record import unit

DIRECTIONS = 32
"""How many directions are shared at most. On trained networks four to nine tenths of the nodes are known after one
product of the vectors that they give; of 16 two to four tenths, and 48 take longer than they save."""
FEWEST = 8
"""Of fewer directions, half as many as there are rows or columns, too little would be learnt."""
WORTH = 64
"""Of fewer matrices the projections take longer than the products that they save."""
POWERS, POWERS_BESIDE = 7, 4
"""How often a vector is multiplied by the fourth power of a projection to find its largest eigenvalue, and another by
the square to find the next one, of which less need be known."""
MIXED = 0.3
"""How much of a random direction the vectors to start from hold where nothing is proven."""
ROUNDING = 64
"""Rounding of sums, in units of their type's relative precision and of what is summed."""


def shared_directions(size: int, samples: int) -> int:
    """Return how many directions matrices of a mean over samples are looked at on."""
    return min(DIRECTIONS, min(size, samples) // 2)


def worth_leading(nodes: int, size: int, samples: int) -> bool:
    """Whether a stack of so many matrices is worth looking at beforehand."""
    return nodes >= WORTH and shared_directions(size, samples) >= FEWEST


@dataclass
class Tally:
    """What is noted of the weights ``h ≥ 0`` of rows ``x`` as they come, for every matrix.

    ``single`` is the largest ``h_{n,i} ‖x_n‖²``, which no largest eigenvalue of ``Σ_n h_{n,i} x_n x_nᵀ`` is below;
    ``positive`` how many weights are, which no rank is above. ``row`` is the row of ``single``, unless the rows stay.
    """

    single: Tensor  # (nodes,)
    positive: Tensor  # (nodes,)
    row: Tensor | None = None  # (nodes, size)

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor, stay: bool = False) -> Tally:
        """Return what there is to note of ``(rows, size)`` and ``(rows, nodes)``."""
        heavy, positive = _shares(rows, weights), weights.sign().sum(dim=0)
        if stay:
            return cls(heavy.amax(dim=0), positive)
        single, place = heavy.max(dim=0)
        return cls(single, positive, rows.index_select(0, place))

    def add(self, other: Tally) -> None:
        """Take further rows into account."""
        assert self.row is not None
        assert other.row is not None
        self.row = torch.where((other.single > self.single)[:, None], other.row, self.row)
        self.single = torch.maximum(self.single, other.single)
        self.positive = self.positive + other.positive

    def rows_of(self, nodes: Tensor) -> Tensor:
        """Return the rows that were noted for some matrices."""
        assert self.row is not None
        return self.row[nodes]


@dataclass(frozen=True)
class Rows:
    """Rows that stay: which of them is the heaviest of a matrix is looked up where that is asked."""

    rows: Tensor
    weights: Tensor

    def rows_of(self, nodes: Tensor) -> Tensor:
        """Return the rows with the largest ``h_{n,i} ‖x_n‖²`` for some matrices."""
        heavy = _shares(self.rows, self.weights.index_select(1, nodes))
        return self.rows.index_select(0, heavy.argmax(dim=0))


def _shares(rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``h_{n,i} ‖x_n‖²``, ``(rows, nodes)``."""
    shares: Tensor = weights * torch.linalg.vector_norm(rows, dim=1, keepdim=True).square_()
    return shares


@dataclass(frozen=True)
class Lead:
    """What is known of a stack of positive semidefinite matrices beforehand.

    ``vectors`` are unit vectors to start from. The largest eigenvalue is at least ``least``, the second largest at
    least ``second`` and at most ``others``: a value beside an eigenvalue, and above ``others``, is the largest. The
    smallest is at most ``smallest``, and zero where the rank is ``short`` of the size. ``images`` are the products of
    ``vectors``, where they came with the rest.
    """

    vectors: Tensor  # (nodes, size)
    least: Tensor  # (nodes,) float64
    second: Tensor  # (nodes,) float64
    others: Tensor  # (nodes,) float64
    smallest: Tensor  # (nodes,) float64
    short: Tensor  # (nodes,) bool
    images: Tensor | None = None  # (nodes, size)

    def divided(self, scales: Tensor) -> Lead:
        """Return what is known of the matrices divided by numbers, ``(nodes,)``; images are none of it."""
        names = ("least", "second", "others", "smallest")
        return replace(self, images=None, **{name: getattr(self, name) / scales for name in names})

    def restricted(self, index: Tensor) -> Lead:
        """Return what is known of these matrices alone."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return Lead(**{name: value[index] for name, value in known.items() if value is not None})


@dataclass(frozen=True)
class Projections:
    """The matrices on an orthonormal ``Q`` that they share: ``B_i = QᵀA_iQ``.

    The eigenvalues ``θ_j`` of ``B`` are at most those of ``A`` (Cauchy). Every vector orthogonal to some ``Qu`` has a
    Rayleigh quotient of at most ``θ + tr A − tr B``, where ``θ`` is the largest eigenvalue of ``B`` on the complement
    of ``u``, since what is outside of ``Q`` has no larger eigenvalue than its trace: so has the second eigenvalue of
    ``A`` (Courant and Fischer). The smallest is at most the mean quotient there,
    ``(tr A − tr B) / (size − directions)``.

    ``random`` is a unit vector of which the starts hold something where that proves nothing: what ``Q`` has left out
    would else stay unseen.

    Source: Horn and Johnson, Matrix Analysis, 2nd ed., theorem 4.2.6 and observation 7.1.2.
    """

    matrices: Iterable[Tensor]  # (some nodes, directions, directions), all one after the other
    directions: Tensor  # (size, directions)
    random: Tensor  # (size,)

    def lead(
        self, tally: Tally, count: int, traces: Tensor, tolerance: float, heaviest: Tally | Rows
    ) -> tuple[Lead, Starts]:
        """Return what they tell, and how the vectors to start from are made of the directions.

        Args:
            tally: of the rows.
            count: what their sums were divided by.
            traces: of the matrices ``A``, ``(nodes,)`` float64.
            tolerance: how well the ends are to be known, relative to the largest.
            heaviest: gives the heaviest row of a matrix.
        """
        size, shared = self.directions.shape
        told = zip(*(_told(some) for some in self.matrices), strict=True)
        first, largest, second, bound, inside = (torch.cat(parts) for parts in told)
        outside = (traces - inside).clamp_min(0) + ROUNDING * torch.finfo(first.dtype).eps * traces
        others, single = bound.double() + outside, tally.single.double() / count
        smallest, short = outside / (size - shared), tally.positive < size
        proven = (others < largest) & (short | (smallest <= tolerance * largest))
        starts = Starts.of(self, first, largest >= single, proven, heaviest)
        lead = Lead(starts.vectors, torch.fmax(largest, single), second, others, smallest, short)
        return lead, starts


def _told(matrices: Tensor) -> tuple[Tensor, ...]:
    """Return unit vectors near the first eigenvectors, two quotients, a bound of all beside the first, and the trace.

    The first is what the 32nd power makes of the heaviest column of the fourth, the second what the fifth power of
    the square does across it, and then the best of what lies between them. With ``θ`` the quotient of a unit ``u``, no
    eigenvalue on the complement of ``u`` is above ``(tr Mᵖ − θᵖ)^{1/p}``: these eigenvalues and ``θ`` are a diagonal of
    ``M``, whose sum of ``p``-th powers is at most ``tr Mᵖ`` (Schur). Here ``p`` is 8, or 4 where the others are
    small and the rounding of sums is not. Many times faster than all eigenvalues of each.

    Args:
        matrices: positive semidefinite, ``(nodes, size, size)``.

    Source: Horn and Johnson, Matrix Analysis, 2nd ed., theorem 4.3.45.
    """
    traces = matrices.diagonal(dim1=1, dim2=2).double().sum(dim=1)
    scale = traces.clamp_min(torch.finfo(matrices.dtype).tiny)  # powers of small curvature would be nothing
    matrices = matrices / scale.to(matrices)[:, None, None]
    square = torch.bmm(matrices, matrices)
    fourth = torch.bmm(square, square)
    one = unit(_column(fourth, fourth.diagonal(dim1=1, dim2=2)))
    for _ in range(POWERS):
        one = unit(_times(one, fourth))
    image = _times(one, square)
    rest = square.diagonal(dim1=1, dim2=2) - one * (
        2 * image - torch.linalg.vecdot(one, image)[:, None] * one
    )
    two = _across(one, _column(square, rest))
    for _ in range(POWERS_BESIDE):
        two = _across(one, _times(two, square))
    first, largest, second = _ritz(matrices, one, _across(one, two))
    rounding = 1 + ROUNDING * torch.finfo(matrices.dtype).eps
    powers = ((4, square), (8, fourth))
    sums = ((p, torch.linalg.vector_norm(half, dim=(1, 2)).double().square()) for p, half in powers)
    four, eight = ((rounding * every - largest**p).clamp_min(0) ** (1 / p) for p, every in sums)
    return first, largest * scale, second * scale, torch.minimum(four, eight) * scale, traces


@dataclass(frozen=True)
class Starts:
    """Unit vectors to start from: ``[Q z] c`` of coordinates ``c``, but for the ``far`` ones.

    These belong to matrices of which one row alone makes more than what is shared: they lie near that row.
    """

    vectors: Tensor  # (nodes, size)
    coordinates: Tensor  # (nodes, directions + 1)
    basis: Tensor  # (size, directions + 1)
    far: Tensor  # (far nodes,)

    @classmethod
    def of(
        cls, known: Projections, first: Tensor, near: Tensor, proven: Tensor, heaviest: Tally | Rows
    ) -> Starts:
        """Return ``Qu``, or a row of its own, and the random vector beside it where nothing is proven."""
        basis = torch.cat([known.directions, known.random[:, None]], dim=1)
        side = torch.where(first @ (known.random @ known.directions) < 0, -MIXED, MIXED).to(first)
        share = torch.where(near & proven, 0.0, side)  # to the same side, or the sum might vanish
        coordinates = torch.cat([first, share[:, None]], dim=1)
        vectors = coordinates @ basis.T
        far = torch.nonzero(~near).flatten()
        row = unit(heaviest.rows_of(far))
        vectors[far] = row + torch.where(row @ known.random < 0, -MIXED, MIXED)[:, None] * known.random
        norms = vectors.norm(dim=1, keepdim=True)
        return cls(vectors / norms, coordinates / norms, basis, far)

    def responses(self, rows: Tensor) -> Tensor:
        """Return what rows give with the vectors, ``(rows, nodes)``: the far ones alone are multiplied in full."""
        found = (rows @ self.basis) @ self.coordinates.T
        found[:, self.far] = rows @ self.vectors[self.far].T
        return found


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Return ``M v`` of symmetric matrices as ``vᵀM``, which is three times faster."""
    return (vectors[:, None] @ matrices)[:, 0]


def _column(matrices: Tensor, heights: Tensor) -> Tensor:
    """Return the column of every symmetric matrix where ``heights`` is largest, ``(nodes, size)``."""
    every = torch.arange(len(matrices), device=matrices.device)
    return matrices[every, heights.argmax(dim=1)]


def _across(one: Tensor, vectors: Tensor) -> Tensor:
    """Return the unit vectors of what is orthogonal to unit vectors."""
    return unit(vectors - torch.linalg.vecdot(one, vectors)[:, None] * one)


def _ritz(matrices: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best vector between two orthogonal unit ones, its quotient, and that of the vector across it.

    Returns:
        Unit vectors ``(nodes, size)``, and quotients ``(nodes,)`` float64.
    """
    images = torch.stack([one, two], dim=1) @ matrices
    pairs = ((one, 0), (two, 0), (two, 1))
    value, cross, other = (torch.linalg.vecdot(x, images[:, k]).double() for x, k in pairs)
    half, mean = (value - other) / 2, (value + other) / 2
    distance = torch.hypot(half, cross)
    angle = (torch.atan2(cross, half) / 2).to(one)[:, None]
    return unit(angle.cos() * one + angle.sin() * two), mean + distance, mean - distance
