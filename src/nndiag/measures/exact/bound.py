"""What the whole block of a layer says of all its nodes at once.

By Cauchy interlacing every principal submatrix has its eigenvalues between the extremes of the whole:
``λ_min(layer) ≤ λ_min(node) ≤ λ_max(node) ≤ λ_max(layer)``. One Lanczos run a layer bounds all nodes from below, its
negative eigenvector points at nodes, and random signs estimate the trace of every node at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.measures.exact.record import LayerBound
from nndiag.measures.hvp import HessianProducts
from nndiag.spectrum import extremes_by, lanczos

BOUND_PRODUCTS = 34
"""Products of the Lanczos run of one layer."""
TRACE_SIGNS = 2
"""Sign vectors of the estimate of all traces."""
NEGLIGIBLE = 0.05
"""Negative curvature below this share of the layer's largest is not looked for."""
MISS_PROBABILITY = 1e-3
"""How often an eigenvalue may lie beyond the bound."""


@dataclass(frozen=True)
class _Whole:
    """The block of all parameters of a layer, as a stack of one."""

    products: HessianProducts

    nodes = 1
    semidefinite = False

    @property
    def size(self) -> int:
        """Parameters of the layer."""
        return self.products.size

    @property
    def rank_bound(self) -> int:
        """Nothing is known of the rank."""
        return self.products.size

    def product(self, vectors: Tensor) -> Tensor:
        """``H v``."""
        return self.products.product(vectors)

    def restricted(self, index: Tensor) -> None:
        """One block is not divided."""

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the block itself in float64, ``(1, size, size)``."""
        every = torch.eye(self.size, dtype=self.products.like.dtype, device=self.products.like.device)
        return self.products.product(every).double()[None]


def layer_bound(products: HessianProducts, generator: torch.Generator) -> tuple[LayerBound, Tensor]:
    """Return the bound and the vector of the smallest eigenvalue found, ``(P,)``.

    A Ritz value is never below the smallest eigenvalue. After ``k`` products from a random start it is above it by more
    than ``ε (λ_max − λ_min)`` with probability at most ``1.648 √P e^{−√ε (2k − 1)}``, here one in a thousand; where the
    Krylov space is exhausted, not at all.

    Args:
        products: over the layer's own parameters.
        generator: source of the start vector.

    Source: Kuczyński and Woźniakowski 1992, theorem 4.2, for the matrix ``λ_max I − H``.
    """
    found = extremes_by(
        lanczos,
        _Whole(products),
        products.like.detach(),
        generator=generator,
        tolerance=0.0,
        max_products=BOUND_PRODUCTS,
        both_vectors=True,
    )
    smallest, largest = float(found.smallest), float(found.largest)
    rounding = 100 * torch.finfo(products.like.dtype).eps * max(abs(smallest), abs(largest))
    missed = rounding
    if not bool(found.converged.all()):
        missed += _missed(products.size, found.products) * (largest - smallest)
    excluded = smallest - missed >= -NEGLIGIBLE * max(largest, 0.0)
    assert found.smallest_vectors is not None
    return LayerBound(smallest, largest, missed, found.products, excluded), found.smallest_vectors[0]


def estimated_traces(products: HessianProducts, places: Tensor, generator: torch.Generator) -> Tensor:
    """Return an unbiased estimate of the trace of every node's block, ``(nodes,)`` float64: the mean of ``v_i·(Hv)_i``
    over random signs ``v``.

    Args:
        products: over the layer's own parameters.
        places: the coordinates of every node, ``(nodes, size)``.
        generator: source of the signs.
    """
    signs = (torch.randint(0, 2, (TRACE_SIGNS, products.size), generator=generator) * 2 - 1).to(products.like)
    entries = (signs * products.product(signs)).mean(dim=0).double()
    return (entries[places.clamp_min(0)] * (places >= 0)).sum(dim=1)


def _missed(size: int, count: int) -> float:
    """Return the share of the spread by which the smallest Ritz value may miss."""
    share = (math.log(1.648 * math.sqrt(size) / MISS_PROBABILITY) / (2 * count - 1)) ** 2
    return share / (1 - 2 * share) if share < 0.5 else math.inf  # the spread itself is missed at both ends
