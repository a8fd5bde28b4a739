"""Exact blocks of nodes in two more forms: formed whole, a product a column, or known by products alone.

``formed_blocks`` are what small blocks are cheapest as, and what an exact trace needs. ``TiledBlocks`` are for large
blocks of few nodes: every product of a solver is one batched second backward pass over a tile of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nndiag.measures.blocks import GramBlocks
from nndiag.measures.hvp import HessianProducts

SKETCH, SIGNS = 4, 8
"""Random directions whose part of a trace is taken exactly, and sign vectors that estimate the rest."""


def formed_blocks(folds: Sequence[HessianProducts], places: Tensor, samples: int, at_once: int) -> GramBlocks:
    """Return the exact blocks of nodes, ``size`` products each, with the share of every fold.

    Args:
        folds: products over the samples of each fold.
        places: the coordinates of every node, ``(nodes, size)``.
        samples: how many the probe has.
        at_once: how many vectors go through one batched pass.
    """
    nodes, size = places.shape
    like = folds[0].like
    own = torch.eye(size, dtype=like.dtype, device=like.device).repeat(nodes, 1)
    every = places.repeat_interleave(size, dim=0)
    shares = [products.product_within(every, own, at_once) for products in folds]
    sums = torch.stack(shares).reshape(len(folds), nodes, size, size) * samples
    return GramBlocks(sums, sums.sum(dim=0) / samples, samples, size, semidefinite=False)


@dataclass(frozen=True)
class TiledBlocks:
    """Exact blocks of nodes known by their products.

    Args:
        whole: products over all samples.
        folds: the same over the samples of each fold.
        places: the coordinates of every node, ``(nodes, size)``.
        samples: how many the probe has.
        at_once: how many vectors go through one batched pass.
        seed: of the estimate of the traces.
    """

    whole: HessianProducts
    folds: Sequence[HessianProducts]
    places: Tensor
    samples: int
    at_once: int
    seed: int

    semidefinite = False

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.whole.like.detach()

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return int(self.places.shape[0])

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return int(self.places.shape[1])

    @property
    def rank_bound(self) -> int:
        """Nothing is known of the rank."""
        return self.size

    def product(self, vectors: Tensor) -> Tensor:
        """``H_i v_i`` of every node."""
        return self.whole.product_within(self.places, vectors, self.at_once)

    def restricted(self, index: Tensor) -> TiledBlocks:
        """Return the blocks of these nodes alone."""
        return replace(self, places=self.places[index])

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        part = formed_blocks([self.whole], self.places[start:stop], self.samples, self.at_once)
        return part.total.double()

    def traces(self) -> Tensor:
        """Return estimates of ``tr H_i``, ``(nodes,)`` float64."""
        return self.estimated_traces[0]

    @cached_property
    def estimated_traces(self) -> tuple[Tensor, Tensor]:
        """Return estimates of the traces and their standard errors, ``(nodes,)`` float64.

        With ``Q`` an orthonormal basis of ``H S``, ``S`` random signs, ``tr H = tr QᵀHQ + tr (I−QQᵀ)H(I−QQᵀ)``: the
        first part, in which the large eigenvalues lie, is exact, the second is the mean of ``gᵀHg`` over signs ``g``
        projected.

        Source: Meyer, Musco, Musco and Woodruff 2021, Hutch++.
        """
        generator = torch.Generator().manual_seed(self.seed)
        sketched = self._products(self._signs(generator, SKETCH))
        basis = torch.linalg.qr(sketched.mT).Q.mT  # (nodes, SKETCH, size)
        exact = (basis * self._products(basis)).sum(dim=(1, 2)).double()
        signs = self._signs(generator, SIGNS)
        rest = signs - (signs @ basis.mT) @ basis
        draws = (rest * self._products(rest)).sum(dim=2).double()
        return exact + draws.mean(dim=1), draws.std(dim=1) / SIGNS**0.5

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``vᵀ (Σ ∂²ℓ_n/∂θ_i²) v`` of each fold, ``(folds, nodes)`` float64."""
        images = [part.product_within(self.places, vectors, self.at_once) for part in self.folds[:folds]]
        return torch.stack([(image * vectors).sum(dim=1).double() for image in images]) * self.samples

    def _products(self, vectors: Tensor) -> Tensor:
        """Multiply every node's block by several vectors, ``(nodes, k, size)``."""
        places = self.places.repeat_interleave(vectors.shape[1], dim=0)
        flat = self.whole.product_within(places, vectors.reshape(-1, self.size), self.at_once)
        return flat.reshape(vectors.shape)

    def _signs(self, generator: torch.Generator, count: int) -> Tensor:
        draws = torch.randint(0, 2, (self.nodes, count, self.size), generator=generator) * 2 - 1
        return draws.to(self.like)
