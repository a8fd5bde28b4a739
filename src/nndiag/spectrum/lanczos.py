"""Lanczos with full reorthogonalisation, batched over all blocks: one run gives both ends of every spectrum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nndiag.spectrum.asking import Asking, Request
from nndiag.spectrum.ends import SETTLED, Ends, Ritz, ends_of
from nndiag.spectrum.krylov import Krylov, leaning
from nndiag.spectrum.lead import Lead
from nndiag.spectrum.raised import raised
from nndiag.spectrum.record import Extremes, Stack

CHECKS = (SETTLED, 4, 5, 6, 8, 10, 13, 18, 25, 34, 46)
"""After how many products the errors are looked at; blocks that have converged then leave the stack."""
LARGE = 256
"""From this size on a product takes so much longer than a look at the errors that one more look may be worth it."""
LIMIT = 100
"""The largest exponent of two of a scale: both it and its inverse are in the range of single precision."""
WORTH_LEAVING = 0.8
"""The stack is rebuilt only where at most this share of it is still at work."""


def lanczos(
    stack: Stack,
    start: Tensor,
    *,
    tolerance: float = 1e-3,
    max_products: int = 64,
    least_products: int = 0,
    both_vectors: bool = False,
    lead: Lead | None = None,
    traces: Callable[[], Tensor] | None = None,
) -> Asking:
    """Ask for products, and return the extremes of every block.

    A Ritz value θ has the residual ``r = β_m |s_m|``, ``s_m`` the last component of its eigenvector in the Krylov
    basis: an eigenvalue lies within ``r`` of it. Where all the others are known to be at most ``θ − γ``, as a lead or
    the trace may say, the largest is at most ``θ + r²/γ``, and is looked at after one product where there is a lead,
    after two where the block is large; else two close eigenvalues look like one until late. At these early looks what
    is told is the larger ``raised`` value. Of a semidefinite block the smallest eigenvalue lies between zero and the
    smallest Ritz value, or the mean of what the trace leaves, and is zero where the rank is known to be short.

    What is returned of a block is what was known at the first look at which its errors were small enough, whichever
    blocks were still at work beside it: so it does not depend on how a stack is divided.

    Args:
        stack: what is known of the matrices; the rank may become known while products are made.
        start: random unit vectors, ``(nodes, size)``, to which the constant one is added; or those of a lead.
        tolerance: largest error accepted, relative to the largest magnitude seen in the block.
        max_products: when to stop all the same.
        least_products: what is known sooner is not believed, but of blocks whose Krylov space is exhausted: where
            neither end is bounded, an isolated eigenvalue may not have shown yet.
        both_vectors: whether to return the vectors of the smallest values too.
        lead: what is known of semidefinite blocks.
        traces: gives those of semidefinite blocks, ``(nodes,)`` float64, once a product was made.

    Returns:
        Extremes; blocks whose errors stay above the tolerance have ``converged`` False, and so have those whose numbers
        are not finite, with NaN for their extremes.

    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 10.1; Ubaru, Chen and Saad 2017 for the
    quadrature.
    """
    assert lead is None or not both_vectors  # semidefinite blocks alone have a lead
    limit = min(max_products, stack.size)
    results = _Results(start, limit, both_vectors)
    owners = torch.arange(stack.nodes, device=start.device)
    first = leaning(start) if lead is None else start
    image = (yield Request(first)) if lead is None or lead.images is None else lead.images
    scales = _scales(image)
    image = image / scales.to(image)[:, None]
    known = None if traces is None else traces() / scales
    if lead is None:
        krylov = Krylov(first, limit, start)
        krylov.extend(image)
        early = krylov.promising(known if stack.size >= LARGE else None)
    else:
        lead = lead.divided(scales)
        owners = results.begin(stack, start, image, lead, tolerance, known)
        if len(owners) == 0:
            return results.extremes(1, scales)
        krylov = Krylov(start[owners], limit)
        krylov.extend(image[owners])
        lead, known = lead.restricted(owners), None if known is None else known[owners]
        early = torch.ones_like(owners, dtype=torch.bool)
    index = owners if len(owners) < stack.nodes else None
    settled = torch.zeros_like(owners, dtype=torch.bool)
    while True:
        done = krylov.count == limit or bool(krylov.finished.all())
        if done or krylov.count in CHECKS or (1 < krylov.count < SETTLED and bool(early.any())):
            ritz = krylov.ritz(stack.semidefinite and krylov.count < SETTLED)
            ends = ends_of(stack, ritz, tolerance, lead, known)
            enough = ends.settled if krylov.count >= SETTLED else ends.settled & early
            enough &= krylov.finished | (krylov.count >= least_products)
            now = ~settled if done else enough & ~settled
            results.put(owners, ends, ritz, krylov, torch.nonzero(now).flatten())
            settled = settled | enough
            left = torch.nonzero(~settled).flatten()
            if done or len(left) == 0:
                return results.extremes(krylov.count, scales)
            if len(left) <= WORTH_LEAVING * len(owners):
                index = owners = owners[left]
                settled, early = settled[left], early[left]
                lead = None if lead is None else lead.restricted(left)
                known = None if known is None else known[left]
                krylov.restrict(left)
        image = yield Request(krylov.current, index)
        krylov.extend(image / scales[owners].to(image)[:, None])


def _scales(images: Tensor) -> Tensor:
    """Return a power of two for every block, near the largest entry of its image, ``(nodes,)`` float64.

    Of images that are divided by it squares are in the range of the type: in single precision curvature below 1e-19
    would else be lost. Nothing else changes by it.
    """
    largest = images.abs().amax(dim=1).double()
    usable = (largest > 0) & largest.isfinite()
    exponents = torch.frexp(torch.where(usable, largest, 1.0)).exponent.clamp(-LIMIT, LIMIT)
    return torch.ldexp(torch.ones_like(largest), exponents)


class _Results:
    """The extremes of all blocks, put down block by block as they are known."""

    def __init__(self, start: Tensor, width: int, both_vectors: bool) -> None:
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
            second=numbers(),
        )

    def begin(
        self,
        stack: Stack,
        start: Tensor,
        image: Tensor,
        lead: Lead,
        tolerance: float,
        traces: Tensor | None,
    ) -> Tensor:
        """Put down what one product of the start vectors tells, and return the blocks that this is not enough for."""
        value = torch.linalg.vecdot(start, image)
        residual = torch.linalg.vector_norm(image - value[:, None] * start, dim=1).double()
        value, precision = value.double(), torch.finfo(start.dtype).eps
        ritz = Ritz(
            values=value[:, None],
            states=torch.ones_like(value)[:, None, None],
            residuals=residual[:, None],
            exhausted=residual <= 100 * precision * value,
            precision=precision,
            raised=raised(value[:, None], residual[:, None], precision),
        )
        ends = ends_of(stack, ritz, tolerance, lead, traces)
        self._found = replace(
            self._found,
            largest=ends.largest,
            smallest=ends.smallest,
            largest_error=ends.largest_error,
            smallest_error=ends.smallest_error,
            vectors=start.clone(),
            converged=ends.converged,
            second=ends.second,
            unmoved=ends.settled,
        )
        self._found.values.copy_(ritz.values.expand_as(self._found.values))
        self._found.weights[:, 0] = 1.0
        return torch.nonzero(~ends.settled).flatten()

    def put(self, owners: Tensor, ends: Ends, ritz: Ritz, krylov: Krylov, which: Tensor) -> None:
        """Put down what is known of these blocks of the ones at work; quadratures are padded with weight zero."""
        if len(which) == 0:
            return
        found, into, count = self._found, owners[which], ritz.count
        values, states = ritz.values[which], ritz.states[which]
        for name in ("largest", "smallest", "largest_error", "smallest_error", "converged", "second"):
            getattr(found, name)[into] = getattr(ends, name)[which]
        found.values[into, :count], found.values[into, count:] = values, values[:, -1:]
        found.weights[into, :count] = krylov.densities(values, states, which)
        found.vectors[into] = krylov.combined(ritz.states[:, :, -1])[which]
        if found.smallest_vectors is not None:
            found.smallest_vectors[into] = krylov.combined(ritz.states[:, :, 0])[which]

    def extremes(self, products: int, scales: Tensor) -> Extremes:
        """Return them all, multiplied by their scales."""
        found = self._found
        names = ("largest", "smallest", "largest_error", "smallest_error", "second")
        scaled = {name: getattr(found, name) * scales for name in names}
        return replace(found, products=products, values=found.values * scales[:, None], **scaled)
