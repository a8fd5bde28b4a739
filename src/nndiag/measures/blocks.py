"""Gauss-Newton blocks of a layer's nodes as products: ``G_i = (1/N) Σ_{n,c} J_{n,c,i} J_{n,c,i}ᵀ``.

Three forms of one thing. ``OuterBlocks``: with one position ``J`` is an outer product, and inputs and
``h_{n,i} = Σ_c g_{c,n,i}²`` are all that is kept. ``GramBlocks``: small blocks are added up whole, so that
memory does not
grow with the probe. ``ImplicitBlocks``: large blocks with several positions are multiplied through the layer's own
function. Which one a layer gets is decided in ``capture``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nndiag.measures.batchview import columns_of
from nndiag.replay.jacobian import squared_norms
from nndiag.replay.kinds import Layer
from nndiag.replay.kinds.base import Use


@dataclass(frozen=True)
class OuterBlocks:
    """Blocks of nodes that share one input vector a sample.

    Args:
        inputs: ``ã``, ``(rows, size)``, one row a sample or more.
        weights: ``h``, ``(rows, nodes)``.
        folds: fold of every row, ``(rows,)``.
        samples: how many samples the mean is over.
    """

    inputs: Tensor
    weights: Tensor
    folds: Tensor
    samples: int

    semidefinite = True

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.inputs

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return int(self.weights.shape[1])

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return int(self.inputs.shape[1])

    @property
    def rank_bound(self) -> int:
        """One rank a row."""
        return min(self.size, int(self.inputs.shape[0]))

    def product(self, vectors: Tensor) -> Tensor:
        """``G V = ((ã Vᵀ) ⊙ h)ᵀ ã / N``."""
        images = (self.inputs @ vectors.T).mul_(self.weights)
        return (images.T @ self.inputs).div_(self.samples)

    def restricted(self, index: Tensor) -> OuterBlocks:
        """Return the blocks of these nodes alone."""
        return replace(self, weights=self.weights[:, index])

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        inputs = self.inputs.double()
        weighted = self.weights[:, start:stop].T.double()[:, :, None] * inputs[None]
        return weighted.mT @ inputs / self.samples

    def traces(self) -> Tensor:
        """``tr G_i = (1/N) Σ_n h_{n,i} ‖ã_n‖²``, ``(nodes,)`` float64."""
        return (self.inputs.square().sum(dim=1) @ self.weights).double() / self.samples

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``Σ vᵀ J_n J_nᵀ v`` over the samples of each fold, ``(folds, nodes)`` float64."""
        forms = (self.inputs @ vectors.T).square_().mul_(self.weights)
        return forms.new_zeros(folds, self.nodes).index_add_(0, self.folds, forms).double()


@dataclass(frozen=True)
class GramBlocks:
    """Blocks added up whole, ``(folds, nodes, size, size)``, each fold for itself and not divided by samples."""

    sums: Tensor
    total: Tensor
    samples: int
    rows: int

    semidefinite = True

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.sums

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return int(self.total.shape[0])

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return int(self.total.shape[1])

    @property
    def rank_bound(self) -> int:
        """One rank a row."""
        return min(self.size, self.rows)

    def product(self, vectors: Tensor) -> Tensor:
        """``G V``."""
        return (self.total @ vectors[:, :, None]).squeeze(2)

    def restricted(self, index: Tensor) -> GramBlocks:
        """Return the blocks of these nodes alone."""
        return replace(self, sums=self.sums[:, index], total=self.total[index])

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        return self.total[start:stop].double()

    def traces(self) -> Tensor:
        """``tr G_i``, ``(nodes,)`` float64."""
        return self.total.diagonal(dim1=1, dim2=2).double().sum(dim=1)

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``vᵀ (Σ J Jᵀ) v`` of each fold, ``(folds, nodes)`` float64."""
        images = (self.sums[:folds] @ vectors[None, :, :, None]).squeeze(3)
        return (images * vectors).sum(dim=2).double()


@dataclass(frozen=True)
class Segment:
    """Rows that went through one forward pass: the calls of the layer, the gradients of every column, and folds.

    ``gradients`` is ``(columns, batch, nodes, positions)``, positions of several calls side by side.
    """

    uses: tuple[Use, ...]
    gradients: Tensor
    folds: Tensor


@dataclass(frozen=True)
class ImplicitBlocks:
    """Blocks known by the layer's own function: one product of all nodes is a forward and a weight gradient."""

    layer: Layer
    segments: Sequence[Segment]
    samples: int

    semidefinite = True

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.segments[0].gradients

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return self.layer.nodes

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return self.layer.size

    @property
    def rank_bound(self) -> int:
        """One rank a row and column."""
        rows = sum(s.gradients.shape[0] * s.gradients.shape[1] for s in self.segments)
        return min(self.size, rows)

    def product(self, vectors: Tensor) -> Tensor:
        """``u = layer(a; V)``, ``r = Σ_c (Σ_t g_c u) g_c``, ``G V`` the weight gradient at ``r / N``."""
        found = torch.zeros_like(vectors)
        for segment in self.segments:
            parts = self._responses(segment, vectors)
            responses = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
            cotangents = torch.zeros_like(responses)
            for g in segment.gradients:
                cotangents.addcmul_(g, (g * responses).sum(dim=2, keepdim=True))
            start = 0
            for use, part in zip(segment.uses, parts, strict=True):
                stop = start + part.shape[2]
                found += self.layer.kind.pull_back(self.layer, use, cotangents[:, :, start:stop])
                start = stop
        return found.div_(self.samples)

    def _responses(self, segment: Segment, vectors: Tensor) -> list[Tensor]:
        return [self.layer.kind.respond(self.layer, use, vectors) for use in segment.uses]

    def restricted(self, index: Tensor) -> None:
        """The layer's own function takes all nodes."""

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64, a product a column."""
        columns = []
        for place in range(self.size):
            unit = self.like.new_zeros(self.nodes, self.size)
            unit[:, place] = 1
            columns.append(self.product(unit)[start:stop].double())
        return torch.stack(columns, dim=2)

    def traces(self) -> Tensor:
        """``tr G_i = (1/N) Σ ‖J_{n,c,i}‖²``, ``(nodes,)`` float64, from Jacobians of one row at a time."""
        total = torch.zeros(self.nodes, dtype=torch.float64, device=self.like.device)
        for segment in self.segments:
            columns = columns_of(self.layer, segment.uses)
            for g in segment.gradients:
                total += squared_norms(self.layer, columns, g).sum(dim=0).double()
        return total / self.samples

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``Σ vᵀ J_n J_nᵀ v`` over the samples of each fold, ``(folds, nodes)`` float64."""
        found = self.like.new_zeros(folds, self.nodes)
        for segment in self.segments:
            responses = torch.cat(self._responses(segment, vectors), dim=2)
            for g in segment.gradients:
                found.index_add_(0, segment.folds, (g * responses).sum(dim=2).square())
        return found.double()


NodeBlocks = OuterBlocks | GramBlocks | ImplicitBlocks


@dataclass(frozen=True)
class ScaledBlocks:
    """``D G D`` for a diagonal ``D`` per node: the curvature that a preconditioned optimiser sees."""

    blocks: NodeBlocks
    scale: Tensor  # (nodes, size): P^{-1/2}

    semidefinite = True

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return self.blocks.nodes

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return self.blocks.size

    @property
    def rank_bound(self) -> int:
        """Scaling does not raise a rank."""
        return self.blocks.rank_bound

    def product(self, vectors: Tensor) -> Tensor:
        """``D G D V``."""
        return self.blocks.product(vectors * self.scale) * self.scale

    def restricted(self, index: Tensor) -> ScaledBlocks | None:
        """Return the blocks of these nodes alone."""
        blocks = self.blocks.restricted(index)
        return None if blocks is None else ScaledBlocks(blocks, self.scale[index])

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        scale = self.scale[start:stop].double()
        return self.blocks.matrices(start, stop) * scale[:, :, None] * scale[:, None, :]
