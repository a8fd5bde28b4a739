"""What Ritz values tell of the ends of the spectra that they come from, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.spectrum.lead import Lead
from nndiag.spectrum.raised import Raised
from nndiag.spectrum.record import Stack

SETTLED = 3
"""After how many products extreme Ritz values are taken to be near extreme eigenvalues where nothing proves it."""
ERROR_FLOOR = 8
"""The least error told, in units of the relative precision of the products."""
SHARP = 0.25
"""Share of the tolerance that is accepted of errors of the eigenvalue itself, which a residual of it only bounds. On
trained networks the errors are the same as at 0.1: what is told is mostly much nearer than what is proven."""


@dataclass(frozen=True)
class Ritz:
    """Ritz values in ascending order, their vectors in the basis, and residuals, after ``count`` products.

    ``exhausted`` says of which blocks no product tells more. ``precision`` is the relative one of the basis. ``raised``
    is what more is known of semidefinite blocks.
    """

    values: Tensor  # (nodes, count) float64
    states: Tensor  # (nodes, count, count) float64
    residuals: Tensor  # (nodes, count) float64
    exhausted: Tensor  # (nodes,) bool
    precision: float
    raised: Raised | None = None

    @property
    def count(self) -> int:
        """How many products they are of."""
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Ends:
    """The ends of the spectra, and how far they may be off; ``second`` is what the second largest is known to reach."""

    largest: Tensor  # (nodes,) float64
    smallest: Tensor  # (nodes,) float64
    largest_error: Tensor  # (nodes,) float64
    smallest_error: Tensor  # (nodes,) float64
    converged: Tensor  # (nodes,) bool
    second: Tensor  # (nodes,) float64

    @property
    def settled(self) -> Tensor:
        """Where more products would tell nothing new, as of blocks whose numbers are not finite."""
        return self.converged | self.largest.isnan()


def ends_of(
    stack: Stack, ritz: Ritz, tolerance: float, lead: Lead | None = None, traces: Tensor | None = None
) -> Ends:
    """Return what the extreme Ritz values tell.

    An eigenvalue lies within the residual ``r`` of a Ritz value θ. Where all the others are known to be at most
    ``θ − γ``, the largest is at most ``θ + r²/γ``; else two close eigenvalues look like one until late. Of semidefinite
    matrices the others are at most what the trace leaves beside the largest.

    Args:
        stack: what is known of the matrices.
        ritz: the values.
        tolerance: largest error accepted, relative to the largest magnitude seen in the block.
        lead: what is known of semidefinite blocks.
        traces: of semidefinite blocks, ``(nodes,)`` float64, where they are known.

    Source: Parlett, The Symmetric Eigenvalue Problem, theorems 4.5.1 and 11.7.1.
    """
    value, residual = ritz.values[:, -1], ritz.residuals[:, -1]
    scale = ritz.values.abs().amax(dim=1)
    least = scale * ERROR_FLOOR * ritz.precision
    surely = value if ritz.raised is None else torch.maximum(value, ritz.raised.surely[0])
    gap = value - _others(surely, lead, traces)
    alone = gap > residual
    above = value + torch.where(alone, residual.square() / gap, residual)  # as far as the eigenvalue may be
    largest, error = _told(ritz, value, surely, above + least)
    error = torch.where(
        alone, torch.maximum(error, least), torch.maximum(error, torch.minimum(residual, least))
    )
    enough = (residual <= tolerance * scale) & (alone | (surely <= above + least))
    enough |= alone & (error <= SHARP * tolerance * scale)
    enough &= error <= tolerance * scale
    if traces is not None:  # no eigenvalue of a semidefinite matrix is above that
        enough &= surely <= traces + tolerance * scale
    if ritz.count < SETTLED:
        enough &= alone
    elif lead is not None:
        enough &= ~(largest < (1 - SHARP * tolerance) * lead.least)
    smallest, smallest_error = _smallest(stack, ritz, scale, lead, traces)
    enough &= smallest_error <= tolerance * scale
    return Ends(largest, smallest, error, smallest_error, ritz.exhausted | enough, _second(ritz, lead))


def _told(ritz: Ritz, value: Tensor, surely: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is told of the largest eigenvalue, which lies between ``surely`` and ``above``, and its error.

    The raised value, where rounding leaves it and the bounds do not contradict each other.
    """
    if ritz.raised is None:
        return value, (above - value).clamp_min(0)
    inside = torch.minimum(torch.maximum(ritz.raised.largest, surely), above)
    told = torch.where(ritz.raised.rounding.isfinite() & (surely <= above), inside, surely)
    error = torch.maximum(above - told, told - surely)
    return told, torch.where(surely <= above, error, surely - value + (above - value))


def _others(largest: Tensor, lead: Lead | None, traces: Tensor | None) -> Tensor:
    """Return what no other eigenvalue is above."""
    known = torch.full_like(largest, torch.inf) if lead is None else lead.others
    return known if traces is None else torch.fmin(known, traces - largest)


def _second(ritz: Ritz, lead: Lead | None) -> Tensor:
    """Return what the second largest eigenvalue is known to reach, zero where nothing is known."""
    known = torch.zeros_like(ritz.values[:, 0]) if lead is None else lead.second
    return known if ritz.raised is None else torch.fmax(known, ritz.raised.surely[1])


def _smallest(
    stack: Stack, ritz: Ritz, scale: Tensor, lead: Lead | None, traces: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the smallest eigenvalues and their errors, with what is known of semidefinite and rank-short blocks."""
    smallest, error = ritz.values[:, 0], ritz.residuals[:, 0]
    if not stack.semidefinite:
        return smallest, error
    if stack.rank_bound < stack.size:
        return torch.zeros_like(smallest), torch.zeros_like(error)
    bounded = torch.full_like(ritz.exhausted, ritz.count < SETTLED)
    if traces is not None and ritz.count < stack.size:
        # the mean quotient of what is orthogonal to the Krylov space
        outside = (traces - ritz.values.sum(dim=1)).clamp_min(0) / (stack.size - ritz.count)
        outside = torch.where(ritz.exhausted, torch.inf, outside)
        bounded |= outside < smallest
        smallest = torch.fmin(smallest, outside)
    if lead is not None:
        bounded |= lead.smallest < smallest
        smallest = torch.where(lead.short, 0.0, torch.fmin(smallest, lead.smallest))
        bounded &= ~lead.short
        error = torch.where(lead.short, 0.0, error)
    error = torch.where(bounded, torch.inf, error)
    rounding = torch.finfo(torch.float32).eps * scale
    return smallest, torch.minimum(error, smallest.clamp_min(0) + rounding)
