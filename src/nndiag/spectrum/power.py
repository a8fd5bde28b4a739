"""Power iteration, batched: λ_max by iterating, λ_min by iterating on the shifted block ``sI − G``."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from nndiag.spectrum.asking import Asking, Request
from nndiag.spectrum.record import Extremes, Stack

SHIFT_MARGIN = 1.05
NEARER = 0.9
"""Shifted runs stop at this share of the residual that is accepted, so that rounding does not leave it above."""
MISS_PROBABILITY = 1e-3
"""How often an error may exceed the one reported for an iteration that has not settled."""


def power(
    stack: Stack,
    start: Tensor,
    *,
    tolerance: float = 1e-4,
    max_products: int = 300,
    both_vectors: bool = False,
) -> Asking:
    """Ask for products, and return the signed extremes of every block by power iteration.

    Three runs: the dominant eigenvalue gives a bound ``s ≥ ‖G‖``; on ``G + sI`` the dominant one is
    ``λ_max + s``, on
    ``sI − G`` it is ``s − λ_min``. So ``diag(2, 1, −6)`` has λ_max = 2. The error reported is the residual
    norm
    ``‖Gv − λv‖``; power iteration converges linearly, so it may be large: see ``converged``. A block that has settled
    is left as it is, whichever blocks are still at work beside it.

    Args:
        stack: what is known of the matrices.
        start: unit vectors to start from, ``(nodes, size)``.
        tolerance: residual, relative to the norm of the block, at which a run stops.
        max_products: the most products of each of the three runs.
        both_vectors: whether to return the vectors of the smallest values too.

    Returns:
        Extremes. ``values`` and ``weights`` hold the two ends only, each with half the weight.
    """
    dominant, _, first = yield from _iterate(start, tolerance, max_products)
    bound = dominant.abs()
    shift = (SHIFT_MARGIN * bound).to(start)[:, None]
    enough = NEARER * tolerance * bound
    _, top, second = yield from _iterate(start, tolerance, max_products, shift, enough)
    _, bottom, third = yield from _iterate(start, tolerance, max_products, shift, enough, sign=-1)
    largest, largest_error = yield from _rayleigh(top)
    smallest, smallest_error = yield from _rayleigh(bottom)
    scale = torch.maximum(bound, torch.maximum(largest.abs(), smallest.abs()))
    settled = torch.maximum(largest_error, smallest_error) <= tolerance * scale
    largest_error = _honest(largest_error, largest + SHIFT_MARGIN * bound, settled, second, stack.size)
    smallest_error = _honest(smallest_error, SHIFT_MARGIN * bound - smallest, settled, third, stack.size)
    values = torch.stack([smallest, largest], dim=1)
    return Extremes(
        largest=largest,
        smallest=smallest,
        largest_error=largest_error,
        smallest_error=smallest_error,
        vectors=top,
        values=values,
        weights=torch.full_like(values, 0.5),
        converged=settled,
        products=int((first.max() + second.max() + third.max()) + 2),
        smallest_vectors=bottom if both_vectors else None,
    )


def _iterate(
    start: Tensor,
    tolerance: float,
    max_products: int,
    shift: Tensor | None = None,
    enough: Tensor | None = None,
    sign: int = 1,
) -> Generator[Request, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return dominant Rayleigh quotients of ``±G + shift``, their unit vectors and the products each block took.

    A block has settled once its residual is ``enough``, by default ``tolerance`` times the norm of the image.
    """
    vectors = start
    tiny = torch.finfo(start.dtype).tiny
    value = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    settled = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    counts = torch.full((len(start),), max_products, device=start.device)
    for count in range(1, max_products + 1):
        image = (yield Request(vectors)) * sign
        if shift is not None:
            image = image + shift * vectors
        now = torch.linalg.vecdot(vectors, image).double()
        value = torch.where(settled, value, now)
        norm = image.norm(dim=1)
        residual = (image - now.to(image)[:, None] * vectors).norm(dim=1)
        fresh = ~settled & (residual <= (tolerance * norm if enough is None else enough))
        counts = torch.where(fresh, count, counts)
        settled = settled | fresh
        if bool(settled.all()):
            break
        moving = (norm > 0) & ~settled
        vectors = torch.where(moving[:, None], image / norm.clamp_min(tiny)[:, None], vectors)
    return value, vectors, counts


def _honest(residual: Tensor, norm: Tensor, settled: Tensor, products: Tensor, size: int) -> Tensor:
    """Return the residual where an iteration has settled, else at least what chance allows it to be off.

    A small residual only says that some eigenvalue is near. After ``k`` products from a random start, the largest
    eigenvalue of a positive semidefinite ``p × p`` matrix is missed by more than ``ε`` times itself with probability at
    most ``0.824 √p (1 − ε)^{k − 1/2}``, here one in a thousand.

    Source: Kuczyński and Woźniakowski 1992, theorem 4.1.
    """
    missed = 1.0 - (MISS_PROBABILITY / (0.824 * size**0.5)) ** (1.0 / (products - 0.5))
    return torch.where(settled, residual, torch.maximum(residual, missed * norm.abs()))


def _rayleigh(vectors: Tensor) -> Generator[Request, Tensor, tuple[Tensor, Tensor]]:
    image = yield Request(vectors)
    value = torch.linalg.vecdot(vectors, image).double()
    return value, (image - value.to(image)[:, None] * vectors).norm(dim=1).double()
