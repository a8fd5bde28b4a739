"""Both ends of the full Hessian's spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nndiag.errors import ModelError
from nndiag.measures.certificate.point import Ends
from nndiag.measures.hvp import HessianProducts, NoSecondDerivativeError
from nndiag.spectrum import Blocks, extremes_by, lanczos

TOLERANCE = 2e-4
"""Residual at which an end counts as found, relative to the largest magnitude."""
MOST_PRODUCTS = 64
BASIS_BYTES = 2 * 2**30
"""Memory for the basis, which holds one vector of all parameters a product; it caps the products of a large model."""
LEAST_PRODUCTS, SURE_PRODUCTS = 8, 40
"""The least products that are made, and so many before ends are believed where memory allows: an isolated negative
eigenvalue of a hundredth of the largest takes 20 to 30 to show among 10⁵ parameters."""
ROUNDINGS = 10
"""Units of rounding, relative to the largest magnitude, that a product may be off by: no residual is known better."""


def hessian_ends(
    hessian: HessianProducts, generator: torch.Generator, progress: Callable[[int, int], None]
) -> tuple[Ends, dict[str, Tensor]]:
    """Return the extremes of ``∂²L/∂θ²`` by Lanczos, and their unit vectors as ``"sharpest"`` and ``"flattest"``.

    At most ``products_allowed`` products; where they do not suffice, the residuals say how far off the ends may be.
    Curvature that is not finite gives ends that are no numbers, and no vectors.

    Args:
        hessian: the products.
        generator: source of the start vector.
        progress: told of the products done and allowed.

    Raises:
        ModelError: an operation of the model has no second derivative.
    """
    most = products_allowed(hessian.size, hessian.like.element_size())
    whole = _Whole(hessian, lambda done: progress(done, most))
    try:
        found = extremes_by(
            lanczos,
            whole,
            hessian.like,
            generator=generator,
            tolerance=TOLERANCE,
            max_products=most,
            least_products=min(most, SURE_PRODUCTS),
            both_vectors=True,
        )
    except _NotFiniteError:
        return Ends(math.nan, math.nan, math.nan, math.nan, whole.done, False), {}
    except NoSecondDerivativeError as error:
        raise ModelError("--certificate", error.why, "leave it out") from error
    largest, smallest = float(found.largest), float(found.smallest)
    rounding = ROUNDINGS * torch.finfo(hessian.like.dtype).eps * max(abs(largest), abs(smallest))
    ends = Ends(
        largest,
        smallest,
        max(float(found.largest_error), rounding),
        max(float(found.smallest_error), rounding),
        found.products,
        bool(found.converged),
    )
    assert found.smallest_vectors is not None
    return ends, {"sharpest": found.vectors[0], "flattest": found.smallest_vectors[0]}


def products_allowed(size: int, bytes_each: int) -> int:
    """Return how many products, and so vectors of ``size`` numbers, the memory for the basis allows."""
    return max(LEAST_PRODUCTS, min(MOST_PRODUCTS, BASIS_BYTES // (size * bytes_each)))


class _NotFiniteError(ArithmeticError):
    """A product is not finite."""


class _Whole:
    """All trainable parameters as a stack of one block."""

    nodes = 1
    semidefinite = False

    def __init__(self, hessian: HessianProducts, progress: Callable[[int], None]) -> None:
        self._hessian, self._progress = hessian, progress
        self.size = self.rank_bound = hessian.size
        self.done = 0

    def product(self, vectors: Tensor) -> Tensor:
        self._progress(self.done)
        found = self._hessian.product(vectors)
        self.done += 1
        if not bool(torch.isfinite(found).all()):
            raise _NotFiniteError
        return found

    def restricted(self, index: Tensor) -> Blocks | None:
        return None

    def matrices(self, start: int, stop: int) -> Tensor:
        return self._hessian.product(torch.eye(self.size).to(self._hessian.like))[None]
