"""Gauss-Newton blocks of layers with several positions, as products through the layer's own functions.

Of every pass the inputs and the gradients at the outputs are kept, and neither blocks nor Jacobians are ever formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.replay.jacobian import beside, jacobian, squared_norms
from nndiag.replay.kinds import Layer, Share


@dataclass(frozen=True)
class Segment:
    """Rows that went through one forward pass: the uses of the layer, the gradients of every column, and folds.

    ``gradients[c]`` holds those of column ``c``, one tensor a share, as its kind holds them.
    """

    shares: tuple[Share, ...]
    gradients: tuple[tuple[Tensor, ...], ...]
    folds: Tensor

    def inputs(self) -> list[Tensor]:
        """Return what gradients of parameters are made of beside the gradients at the outputs, for every share."""
        return [share.kind.inputs(share) for share in self.shares]


@dataclass(frozen=True)
class ImplicitBlocks:
    """Blocks known by the layer's own functions: one product of all nodes is a forward and a weight gradient."""

    layer: Layer
    segments: Sequence[Segment]
    samples: int

    semidefinite = True

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.segments[0].gradients[0][0]

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
        rows = sum(len(segment.folds) * len(segment.gradients) for segment in self.segments)
        return min(self.size, rows)

    def product(self, vectors: Tensor) -> Tensor:
        """``u = layer(a; V)``, ``r = Σ_c (Σ_t g_c u) g_c``, ``G V`` the parameters' gradient at ``r / N``."""
        return self.gathered(self.contracted(vectors))

    def contracted(self, vectors: Tensor) -> list[Tensor]:
        """Return ``⟨J_{n,c,i}, v_i⟩``, ``(columns, batch, nodes)`` of every segment."""
        found = []
        for segment in self.segments:
            responses = _responses(segment, vectors)
            found.append(torch.stack([_contracted(segment, g, responses) for g in segment.gradients]))
        return found

    def gathered(self, contracted: Sequence[Tensor]) -> Tensor:
        """Return ``(1/N) Σ_{n,c} q_{n,c,i} J_{n,c,i}`` for such numbers ``q``, ``(nodes, size)``."""
        found = self.like.new_zeros(self.nodes, self.size)
        for segment, of_columns in zip(self.segments, contracted, strict=True):
            cotangents = [torch.zeros_like(g) for g in segment.gradients[0]]
            for gradients, q in zip(segment.gradients, of_columns, strict=True):
                for share, g, sums in zip(segment.shares, gradients, cotangents, strict=True):
                    share.kind.weigh(share, q, g, sums)
            for share, sums in zip(segment.shares, cotangents, strict=True):
                share.add_to(found, share.kind.pull_back(share, sums))
        return found.div_(self.samples)

    def restricted(self, index: Tensor) -> None:
        """A product treats all nodes at once."""
        return

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves, made of Jacobians, in float64."""
        found: Tensor | None = None
        for segment in self.segments:
            inputs = segment.inputs()
            for gradients in segment.gradients:
                parts = list(zip(segment.shares, inputs, gradients, strict=True))
                own = jacobian(self.layer, parts, start, stop).double().movedim(0, 1)
                found = own.mT @ own if found is None else found.baddbmm_(own.mT, own)
        assert found is not None
        return found / self.samples

    def traces(self) -> Tensor:
        """``tr G_i = (1/N) Σ_{n,c} ‖J_{n,c,i}‖²``, ``(nodes,)`` float64."""
        total = torch.zeros(self.nodes, dtype=torch.float64, device=self.like.device)
        for segment in self.segments:
            inputs = segment.inputs()
            for gradients in beside(segment.shares, segment.gradients):
                parts = list(zip(segment.shares, inputs, gradients, strict=True))
                norms = squared_norms(self.layer, parts).sum(dim=0).double()
                total += norms.reshape(-1, self.nodes).sum(dim=0)
        return total / self.samples

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``Σ vᵀ J_n J_nᵀ v`` over the samples of each fold, ``(folds, nodes)`` float64."""
        return self.squared_by_fold(self.contracted(vectors), folds)

    def squared_by_fold(self, contracted: Sequence[Tensor], folds: int) -> Tensor:
        """Add up the squares of such numbers over the samples of each fold, ``(folds, nodes)`` float64."""
        found = self.like.new_zeros(folds, self.nodes)
        for segment, of_columns in zip(self.segments, contracted, strict=True):
            found.index_add_(0, segment.folds, of_columns.square().sum(dim=0))
        return found.double()


def _responses(segment: Segment, vectors: Tensor) -> list[Tensor]:
    """Return what each share puts out, laid out in memory as its gradients are: every column is multiplied with it."""
    found = [share.kind.respond(share, share.own(vectors)) for share in segment.shares]
    return [
        one if one.stride() == g.stride() else torch.empty_like(g).copy_(one)
        for one, g in zip(found, segment.gradients[0], strict=True)
    ]


def _contracted(segment: Segment, gradients: Sequence[Tensor], responses: Sequence[Tensor]) -> Tensor:
    """Return ``⟨J_{n,i}, v_i⟩`` of one column, ``(batch, nodes)``."""
    parts = [
        share.kind.contract(share, g, u)
        for share, g, u in zip(segment.shares, gradients, responses, strict=True)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
