"""The curvature of the loss in the output as a factor, ``B_n = S_n S_nᵀ``, of which no matrix is ever formed.

The columns of ``S_n`` are gathered in *atoms*: a single column, taken exactly by a backward pass of its own, or a
mixture of many, which is only ever drawn, ``S ε`` with independent signs ``ε``, since ``E (S ε)(S ε)ᵀ = S Sᵀ``. A
seed of a backward pass is a sum of atoms, each with a sign; it is formed when it is wanted and takes no more memory
than the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Draw = Callable[[Tensor, int], Tensor]
"""Gives independent signs, ±1, so many for each of the rows named: ``(rows, count)``."""

DIAGONAL_ATOMS = 4096
"""Up to this many outputs each is an atom of its own; more are gathered in so many mixtures."""


class Factor(Protocol):
    """``S_n`` for every sample of a batch.

    ``weights`` are the traces ``‖s_a‖²`` of the atoms, ``(batch, atoms)`` float64; ``ranks`` how many columns each of
    them mixes, ``(atoms,)``; ``total`` the mean over samples of the trace of the positive part of ``B_n``, and
    ``negative`` that of its negative part, which is left out (a loss that is not convex in the output). ``entries`` are
    the numbers of a seed, a sample.
    """

    weights: Tensor
    ranks: Tensor
    total: float
    negative: float
    entries: int

    def held(self, batch: int) -> int:
        """Return the most bytes that the factor of so many such samples takes, beside a few copies of its output."""
        ...  # pragma: no cover

    def combine(self, signs: Tensor, samples: Tensor, draw: Draw) -> Tensor:
        """Return ``Σ_a signs_{r,a} s_a`` of the samples named, ``(rows, …)`` like the output.

        Args:
            signs: ``(rows, atoms)``: 1, -1, or 0 for what is not to be in it.
            samples: whose atoms, ``(rows,)``.
            draw: gives the signs within mixtures of some of the rows.
        """
        ...  # pragma: no cover


class DiagonalFactor:
    """``B_n = diag(b_n)``: the atoms are single outputs, or interleaved mixtures of them where they are many.

    Args:
        entries: ``b``, ``(batch, outputs)``; negative ones are left out and counted.
        output: gives shape and dtype of the seeds.
    """

    def __init__(self, entries: Tensor, output: Tensor) -> None:
        self._roots = entries.clamp_min(0).sqrt()
        self._like = output.detach()
        self.entries = outputs = entries.shape[1]
        atoms = min(outputs, DIAGONAL_ATOMS)
        self._owner = torch.arange(outputs, device=entries.device) % atoms
        traces = entries.new_zeros(len(entries), atoms, dtype=torch.float64)
        self.weights = traces.index_add_(1, self._owner, entries.clamp_min(0).double())
        self.ranks = torch.bincount(self._owner, minlength=atoms)
        self.total = float(self.weights.sum(dim=1).mean())
        self.negative = float(-entries.clamp_max(0).sum(dim=1, dtype=torch.float64).mean())

    def held(self, batch: int) -> int:
        """The weights: no more than outputs in double precision."""
        return 0

    def combine(self, signs: Tensor, samples: Tensor, draw: Draw) -> Tensor:
        """``√b_j`` of every output ``j``, with its sign."""
        seed = self._roots[samples] * signs.to(self._roots)[:, self._owner]
        if len(self.ranks) < len(self._owner):
            seed = seed * draw(torch.arange(len(seed), device=seed.device), seed.shape[1]).to(seed)
        return seed.to(self._like.dtype).reshape(-1, *self._like.shape[1:])


class ColumnFactor:
    """Columns that are kept: eigenvectors of ``B_n`` times the roots of their eigenvalues.

    Args:
        columns: ``(atoms, batch, outputs)``.
        output: gives shape and dtype of the seeds.
        negative: the part of ``B`` left out.
        matrices: copies of ``B`` that were there at once to find them.
    """

    def __init__(self, columns: Tensor, output: Tensor, negative: float = 0.0, matrices: int = 0) -> None:
        self._columns, self._like = columns.transpose(0, 1).contiguous(), output.detach()
        self.weights = self._columns.double().square().sum(dim=2)
        self.ranks = torch.ones(len(columns), dtype=torch.long, device=columns.device)
        self.total = float(self.weights.sum(dim=1).mean())
        self.negative, self.entries, self._matrices = negative, columns.shape[2], matrices

    def held(self, batch: int) -> int:
        """The matrices; of columns in closed form the seeds of all passes, which count as such, take about as much."""
        return 8 * batch * self._matrices * self.entries**2

    def combine(self, signs: Tensor, samples: Tensor, draw: Draw) -> Tensor:
        """The columns, each with its sign."""
        own = self._columns.index_select(0, samples)
        seed = signs.to(own)[:, None] @ own
        return seed.to(self._like.dtype).reshape(-1, *self._like.shape[1:])
