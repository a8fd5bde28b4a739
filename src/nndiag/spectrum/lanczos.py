"""Lanczos with full reorthogonalisation, batched over all blocks: one run gives both ends of every spectrum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nndiag.spectrum.asking import Asking, Request
from nndiag.spectrum.eigenpairs import eigenpairs
from nndiag.spectrum.krylov import Krylov
from nndiag.spectrum.lead import Lead
from nndiag.spectrum.record import Extremes, Stack

CHECKS = (3, 4, 5, 6, 8, 10, 13, 18, 25, 34, 46)
"""After how many products the errors are looked at; blocks that have converged then leave the stack."""
FIRST_LED = 2
"""After how many those of blocks are whose largest eigenvalue is known to be the one that they started near."""
SHARP = 0.05
"""Share of the tolerance that is accepted of errors of the eigenvalue itself, which a residual of it only bounds."""
WORTH_LEAVING = 0.8
"""The stack is rebuilt only where at most this share of it is still at work."""


def lanczos(
    stack: Stack,
    start: Tensor,
    *,
    tolerance: float = 1e-3,
    max_products: int = 64,
    both_vectors: bool = False,
    lead: Lead | None = None,
) -> Asking:
    """Ask for products, and return the extremes of every block.

    A Ritz value θ has the residual ``r = β_m |s_m|``, ``s_m`` the last component of its eigenvector in the Krylov
    basis: an eigenvalue lies within ``r`` of it. Where all the others are known to be at most ``θ − γ``, as a lead may
    say, the largest is within ``r²/γ``; else two close eigenvalues look like one until late. Of a semidefinite block
    the smallest eigenvalue lies between zero and the smallest Ritz value, and is zero where the rank is known to be
    short.

    What is returned of a block is what was known at the first look at which its errors were small enough, whichever
    blocks were still at work beside it: so it does not depend on how a stack is divided.

    Args:
        stack: what is known of the matrices; the rank may become known while products are made.
        start: random unit vectors, ``(nodes, size)``. The start is their sum with the constant unit vector: inputs
            that are never negative, as behind a ReLU, have their largest eigenvalue near it, and no other loses by it.
        tolerance: largest error accepted, relative to the largest magnitude seen in the block.
        max_products: when to stop all the same.
        both_vectors: whether to return the vectors of the smallest values too.
        lead: what is known of semidefinite blocks; the start leans towards its vectors, in place of the constant one,
            where they are near.

    Returns:
        Extremes; blocks whose errors stay above the tolerance have ``converged`` False, and so have those whose numbers
        are not finite, with NaN for their extremes.

    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 10.1; Parlett, The Symmetric Eigenvalue Problem,
    theorem 11.7.1, for ``r²/γ``; Ubaru, Chen and Saad 2017 for the quadrature.
    """
    limit = min(max_products, stack.size)
    krylov = Krylov(start, limit, lead)
    results = _Results(start, limit, both_vectors, None if lead is None else lead.second)
    owners = torch.arange(stack.nodes, device=start.device)
    settled = torch.zeros_like(owners, dtype=torch.bool)
    index: Tensor | None = None
    while True:
        krylov.extend((yield Request(krylov.current, index)))
        done = krylov.count == limit or bool(krylov.finished.all())
        led = lead is not None and krylov.count == FIRST_LED
        if not (done or led or krylov.count in CHECKS):
            continue
        ends = _ends(stack, krylov, tolerance, lead)
        now = ~settled if done else ends.settled & ~settled
        results.put(owners, ends, krylov, torch.nonzero(now).flatten())
        settled = settled | ends.settled
        left = torch.nonzero(~settled).flatten()
        if done or len(left) == 0:
            return results.extremes(krylov.count)
        if len(left) <= WORTH_LEAVING * len(owners):
            index = owners = owners[left]
            settled = settled[left]
            lead = None if lead is None else lead.restricted(left)
            krylov.restrict(left)


@dataclass(frozen=True)
class _Ends:
    """What the tridiagonal problems say: Ritz values and vectors, and how far the ends may be off."""

    values: Tensor  # (nodes, count)
    states: Tensor  # (nodes, count, count)
    smallest: Tensor
    largest_error: Tensor
    smallest_error: Tensor
    converged: Tensor

    @property
    def settled(self) -> Tensor:
        """Where more products would tell nothing new, as of blocks whose numbers are not finite."""
        return self.converged | self.values[:, 0].isnan()


def _ends(stack: Stack, krylov: Krylov, tolerance: float, lead: Lead | None) -> _Ends:
    """Solve the tridiagonal problems."""
    values, states = eigenpairs(krylov.tridiagonal())
    residuals = krylov.beta[:, krylov.count - 1, None] * states[:, -1, :].abs()
    scale = values.abs().amax(dim=1)
    smallest, smallest_error = _smallest(stack, values, residuals[:, 0], scale)
    largest_error = residuals[:, -1]
    enough = largest_error <= tolerance * scale
    if lead is not None:
        smallest, smallest_error = (torch.where(lead.short, 0.0, x) for x in (smallest, smallest_error))
        gap = values[:, -1] - lead.others
        alone = gap > largest_error
        largest_error = torch.where(alone, largest_error.square() / gap, largest_error)
        enough |= alone & (largest_error <= SHARP * tolerance * scale)
        enough &= (
            alone if krylov.count < CHECKS[0] else ~(values[:, -1] < (1 - SHARP * tolerance) * lead.least)
        )
    enough &= smallest_error <= tolerance * scale
    return _Ends(values, states, smallest, largest_error, smallest_error, krylov.finished | enough)


class _Results:
    """The extremes of all blocks, put down block by block as they are known."""

    def __init__(self, start: Tensor, width: int, both_vectors: bool, second: Tensor | None) -> None:
        nodes = len(start)

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(nodes, *shape, dtype=torch.float64, device=start.device)

        self._found = Extremes(
            largest=numbers(),
            smallest=numbers(),
            largest_error=numbers(),
            smallest_error=numbers(),
            vectors=torch.empty_like(start),
            values=numbers(width),
            weights=numbers(width),
            converged=torch.zeros(nodes, dtype=torch.bool, device=start.device),
            products=0,
            smallest_vectors=torch.empty_like(start) if both_vectors else None,
            second=second,
        )

    def put(self, owners: Tensor, ends: _Ends, krylov: Krylov, which: Tensor) -> None:
        """Put down what is known of these blocks of the ones at work; quadratures are padded with weight zero."""
        found, into, count = self._found, owners[which], krylov.count
        values, states = ends.values[which], ends.states[which]
        found.largest[into], found.smallest[into] = values[:, -1], ends.smallest[which]
        found.largest_error[into] = ends.largest_error[which]
        found.smallest_error[into] = ends.smallest_error[which]
        found.converged[into] = ends.converged[which]
        found.values[into, :count], found.values[into, count:] = values, values[:, -1:]
        found.weights[into, :count] = krylov.densities(values, states, which)
        found.vectors[into] = krylov.combined(states[:, :, -1], which)
        if found.smallest_vectors is not None:
            found.smallest_vectors[into] = krylov.combined(states[:, :, 0], which)

    def extremes(self, products: int) -> Extremes:
        """Return them all."""
        return replace(self._found, products=products)


def _smallest(stack: Stack, values: Tensor, residual: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest eigenvalues and their errors, with what is known of semidefinite and rank-short blocks."""
    smallest = values[:, 0]
    if not stack.semidefinite:
        return smallest, residual
    if stack.rank_bound < stack.size:
        return torch.zeros_like(smallest), torch.zeros_like(residual)
    rounding = torch.finfo(torch.float32).eps * scale
    return smallest, torch.minimum(residual, smallest.clamp_min(0) + rounding)
