"""Half a product saved: what rows give with a vector is known where it lies between vectors that were multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.measures.implicit import ImplicitBlocks

REMEMBERED = 8
"""After so many products nothing is remembered: it would take more memory than it is worth."""


class Remembering:
    """Multiplies as the blocks that it holds do, and remembers ``⟨J_n, v⟩`` of every row with each vector ``v``."""

    semidefinite = True

    def __init__(self, blocks: ImplicitBlocks) -> None:
        self._blocks = blocks
        self.nodes, self.size, self.rank_bound = blocks.nodes, blocks.size, blocks.rank_bound
        self._known: list[tuple[Tensor, list[Tensor]]] = []
        self._products = 0

    def product(self, vectors: Tensor) -> Tensor:
        """``G V``."""
        contracted = self._blocks.contracted(vectors)
        self._products += 1
        if self._products <= REMEMBERED:
            self._known.append((vectors.clone(), contracted))
        else:
            self._known.clear()
        return self._blocks.gathered(contracted)

    def restricted(self, index: Tensor) -> None:
        """A product treats all nodes at once."""
        return

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        return self._blocks.matrices(start, stop)

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """Return what the blocks would, of vectors between those that were multiplied, ``(folds, nodes)`` float64."""
        if not self._known:
            return self._blocks.forms_by_fold(vectors, folds)
        shares = _coordinates(torch.stack([basis for basis, _ in self._known], dim=1), vectors)
        parts = zip(*(contracted for _, contracted in self._known), strict=True)
        found = [sum(share * q for share, q in zip(shares.to(vectors), part, strict=True)) for part in parts]
        return self._blocks.squared_by_fold(found, folds)


def _coordinates(basis: Tensor, vectors: Tensor) -> Tensor:
    """Return ``x`` with ``Σ_k x_k b_k = v`` for vectors in the span, ``(count, nodes)``; some ``b`` may be zero.

    Args:
        basis: ``b``, ``(nodes, count, size)``.
        vectors: ``v``, ``(nodes, size)``.
    """
    basis = basis.double()
    gram = basis @ basis.mT
    usable = gram.isfinite().flatten(1).all(dim=1)  # of the others LAPACK would give up all
    inverse = torch.linalg.pinv(torch.where(usable[:, None, None], gram, 0.0), hermitian=True)
    found: Tensor = (inverse @ (basis @ vectors.double()[:, :, None]))[:, :, 0]
    return found.T
