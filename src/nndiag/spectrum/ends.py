"""What Ritz values tell of the ends of the spectra that they come from, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.spectrum.lead import Lead
from nndiag.spectrum.record import Stack

SETTLED = 3
"""After how many products extreme Ritz values are taken to be near extreme eigenvalues where nothing proves it."""
ERROR_FLOOR = 8
"""The least error told, in units of the relative precision of the products."""
SHARP = 0.1
"""Share of the tolerance that is accepted of errors of the eigenvalue itself, which a residual of it only bounds."""


@dataclass(frozen=True)
class Ritz:
    """Ritz values in ascending order, their vectors in the basis, and residuals, after ``count`` products.

    ``exhausted`` says of which blocks no product tells more. ``precision`` is the relative one of the basis.
    """

    values: Tensor  # (nodes, count) float64
    states: Tensor  # (nodes, count, count) float64
    residuals: Tensor  # (nodes, count) float64
    exhausted: Tensor  # (nodes,) bool
    precision: float

    @property
    def count(self) -> int:
        """How many products they are of."""
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Ends:
    """The ends of the spectra, and how far they may be off."""

    largest: Tensor  # (nodes,) float64
    smallest: Tensor  # (nodes,) float64
    largest_error: Tensor  # (nodes,) float64
    smallest_error: Tensor  # (nodes,) float64
    converged: Tensor  # (nodes,) bool

    @property
    def settled(self) -> Tensor:
        """Where more products would tell nothing new, as of blocks whose numbers are not finite."""
        return self.converged | self.largest.isnan()


def ends_of(stack: Stack, ritz: Ritz, tolerance: float, lead: Lead | None) -> Ends:
    """Return what the extreme Ritz values tell.

    An eigenvalue lies within the residual ``r`` of a Ritz value θ. Where all the others are known to be at most
    ``θ − γ``, the largest is within ``r²/γ``; else two close eigenvalues look like one until late.

    Args:
        stack: what is known of the matrices.
        ritz: the values.
        tolerance: largest error accepted, relative to the largest magnitude seen in the block.
        lead: what is known of semidefinite blocks.

    Source: Parlett, The Symmetric Eigenvalue Problem, theorems 4.5.1 and 11.7.1.
    """
    largest, error = ritz.values[:, -1], ritz.residuals[:, -1]
    scale = ritz.values.abs().amax(dim=1)
    smallest, smallest_error = _smallest(stack, ritz, scale, lead)
    enough = error <= tolerance * scale
    if lead is not None:
        gap = largest - lead.others
        alone = gap > error
        error = torch.where(
            alone, (error.square() / gap).clamp_min(ERROR_FLOOR * ritz.precision * scale), error
        )
        enough |= alone & (error <= SHARP * tolerance * scale)
        enough &= alone if ritz.count < SETTLED else ~(largest < (1 - SHARP * tolerance) * lead.least)
    enough &= smallest_error <= tolerance * scale
    return Ends(largest, smallest, error, smallest_error, ritz.exhausted | enough)


def _smallest(stack: Stack, ritz: Ritz, scale: Tensor, lead: Lead | None) -> tuple[Tensor, Tensor]:
    """Return the smallest eigenvalues and their errors, with what is known of semidefinite and rank-short blocks."""
    smallest, error = ritz.values[:, 0], ritz.residuals[:, 0]
    if not stack.semidefinite:
        return smallest, error
    if stack.rank_bound < stack.size:
        return torch.zeros_like(smallest), torch.zeros_like(error)
    if lead is not None:
        bounded = (lead.smallest < smallest) | (ritz.count < SETTLED)
        smallest = torch.where(lead.short, 0.0, torch.fmin(smallest, lead.smallest))
        error = torch.where(lead.short, 0.0, torch.where(bounded, torch.inf, error))
    rounding = torch.finfo(torch.float32).eps * scale
    return smallest, torch.minimum(error, smallest.clamp_min(0) + rounding)
