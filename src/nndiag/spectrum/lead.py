"""What matrices that share their rows tell of their spectra before any of them is multiplied.

``A_i = (1/N) Σ_n h_{n,i} x_n x_nᵀ`` with ``h ≥ 0``: where few directions hold most of the rows, a projection of every
matrix on these costs less than one product, and often proves which eigenvalue is the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nndiag.spectrum.eigenpairs import eigenpairs

DIRECTIONS = 8
"""How many directions are shared: with 16 a product less is made of every tenth matrix, and the projections take four
times as long."""
SWEEPS = 2
"""Subspace iterations that find them."""
WORTH = 64
"""Of fewer matrices the projections take longer than the products that they save."""


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


def shared_lead(rows: Tensor, weights: Tensor, count: int, traces: Tensor) -> Lead:
    """Project ``A_i = (1/count) Σ_n h_{n,i} x_n x_nᵀ`` on directions that hold most of ``Σ_i A_i``.

    With ``B = QᵀAQ`` for an orthonormal ``Q``, the eigenvalues ``θ_j`` of ``B`` are at most those of ``A`` (Cauchy),
    and every vector orthogonal to the first Ritz vector has a Rayleigh quotient of at most ``θ_2 + tr A − tr B``, since
    what is outside of ``Q`` has no larger eigenvalue than its trace; so the second eigenvalue of ``A`` is at most that
    (Courant and Fischer).

    Args:
        rows: ``x``, ``(rows, size)``.
        weights: ``h ≥ 0``, ``(rows, nodes)``.
        count: what the sums are divided by.
        traces: of the matrices, ``(nodes,)`` float64.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4, for the directions; Horn and Johnson, Matrix Analysis,
    2nd ed., theorem 4.2.6 and observation 7.1.2.
    """
    directions = _directions(rows, weights.sum(dim=1, keepdim=True))
    projected = rows @ directions
    first, other = torch.triu_indices(DIRECTIONS, DIRECTIONS, device=rows.device)
    entries = (weights.T @ (projected[:, first] * projected[:, other])).double() / count
    matrices = entries.new_empty(len(entries), DIRECTIONS, DIRECTIONS)
    matrices[:, first, other] = matrices[:, other, first] = entries
    values, states = eigenpairs(matrices)
    outside = (traces - values.sum(dim=1)).clamp_min(0)
    single = (weights * rows.square().sum(dim=1, keepdim=True)).amax(dim=0).double() / count
    return Lead(
        vectors=states[:, :, -1].to(rows) @ directions.T,
        near=values[:, -1] >= single,
        least=torch.fmax(values[:, -1], single),
        second=values[:, -2],
        others=values[:, -2].clamp_min(0) + outside,
        short=torch.count_nonzero(weights, dim=0) < rows.shape[1],
    )


def _directions(rows: Tensor, weights: Tensor) -> Tensor:
    """Return orthonormal directions that hold most of ``Σ_n w_n x_n x_nᵀ``, ``(size, DIRECTIONS)``."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(rows.shape[1], DIRECTIONS, generator=generator, dtype=rows.dtype).to(rows.device)
    for _ in range(SWEEPS):
        found = torch.linalg.qr(rows.T @ ((rows @ found).mul_(weights)))[0]
    return found
