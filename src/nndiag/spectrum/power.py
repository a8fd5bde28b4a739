"""Power iteration, batched: λ_max by iterating, λ_min by iterating on the shifted block ``sI − G``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nndiag.spectrum.record import Blocks, Extremes, random_vectors

Product = Callable[[Tensor], Tensor]
SHIFT_MARGIN = 1.05
MISS_PROBABILITY = 1e-3
"""How often an error may exceed the one reported for an iteration that has not settled."""


def power_extremes(
    blocks: Blocks,
    like: Tensor,
    *,
    generator: torch.Generator,
    tolerance: float = 1e-4,
    max_products: int = 300,
    both_vectors: bool = False,
) -> Extremes:
    """Return the signed extremes of every block by power iteration.

    Three runs: the dominant eigenvalue gives a bound ``s ≥ ‖G‖``; on ``G + sI`` the dominant one is
    ``λ_max + s``, on
    ``sI − G`` it is ``s − λ_min``. So ``diag(2, 1, −6)`` has λ_max = 2. The error reported is the residual
    norm
    ``‖Gv − λv‖``; power iteration converges linearly, so it may be large: see ``converged``.

    Args:
        blocks: the stack of symmetric matrices.
        like: gives dtype and device of the vectors.
        generator: source of the start vectors.
        tolerance: residual, relative to the norm of the block, at which a run stops.
        max_products: the most products of each of the three runs.
        both_vectors: whether to return the vectors of the smallest values too.

    Returns:
        Extremes. ``values`` and ``weights`` hold the two ends only, each with half the weight.
    """
    start = random_vectors(blocks, like, generator)
    dominant, _, first = _iterate(blocks.product, start, tolerance, max_products)
    bound = dominant.abs()
    shift = (SHIFT_MARGIN * bound).to(like)[:, None]
    _, top, second = _iterate(lambda v: blocks.product(v) + shift * v, start, tolerance, max_products)
    _, bottom, third = _iterate(lambda v: shift * v - blocks.product(v), start, tolerance, max_products)
    largest, largest_error = _rayleigh(blocks, top)
    smallest, smallest_error = _rayleigh(blocks, bottom)
    scale = torch.maximum(bound, torch.maximum(largest.abs(), smallest.abs()))
    settled = torch.maximum(largest_error, smallest_error) <= tolerance * scale
    largest_error = _honest(largest_error, largest + SHIFT_MARGIN * bound, settled, second, blocks.size)
    smallest_error = _honest(smallest_error, SHIFT_MARGIN * bound - smallest, settled, third, blocks.size)
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
        products=first + second + third + 2,
        smallest_vectors=bottom if both_vectors else None,
    )


def _iterate(
    product: Product, start: Tensor, tolerance: float, max_products: int
) -> tuple[Tensor, Tensor, int]:
    """Return dominant Rayleigh quotients, their unit vectors and the number of products."""
    vectors = start
    tiny = torch.finfo(start.dtype).tiny
    value = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    for count in range(1, max_products + 1):
        image = product(vectors)
        value = torch.linalg.vecdot(vectors, image).double()
        norm = image.norm(dim=1)
        residual = (image - value.to(image)[:, None] * vectors).norm(dim=1)
        if bool((residual <= tolerance * norm).all()):
            return value, vectors, count
        vectors = torch.where(norm[:, None] > 0, image / norm.clamp_min(tiny)[:, None], vectors)
    return value, vectors, max_products


def _honest(residual: Tensor, norm: Tensor, settled: Tensor, products: int, size: int) -> Tensor:
    """Return the residual where an iteration has settled, else at least what chance allows it to be off.

    A small residual only says that some eigenvalue is near. After ``k`` products from a random start, the largest
    eigenvalue of a positive semidefinite ``p × p`` matrix is missed by more than ``ε`` times itself with probability at
    most ``0.824 √p (1 − ε)^{k − 1/2}``, here one in a thousand.

    Source: Kuczyński and Woźniakowski 1992, theorem 4.1.
    """
    missed = 1.0 - (MISS_PROBABILITY / (0.824 * size**0.5)) ** (1.0 / (products - 0.5))
    return torch.where(settled, residual, torch.maximum(residual, missed * norm.abs()))


def _rayleigh(blocks: Blocks, vectors: Tensor) -> tuple[Tensor, Tensor]:
    image = blocks.product(vectors)
    value = torch.linalg.vecdot(vectors, image).double()
    return value, (image - value.to(image)[:, None] * vectors).norm(dim=1).double()
