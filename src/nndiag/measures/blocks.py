"""Gauss-Newton blocks of a layer's nodes as products: ``G_i = (1/N) Σ_{n,c} J_{n,c,i} J_{n,c,i}ᵀ``.

Four forms of one thing. ``OuterBlocks``: with one position ``J`` is an outer product, and inputs and
``h_{n,i} = Σ_c g_{c,n,i}²`` are all that is kept. ``GramBlocks``: small blocks are added up whole, so that memory does
not grow with the probe. ``ImplicitBlocks``: large blocks with several positions are multiplied through the layer's own
function. ``RowBlocks``: Jacobians as they are, where there are few. Which one a layer gets is decided in ``capture``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nndiag.measures.implicit import ImplicitBlocks
from nndiag.spectrum import Blocks, Lead, Tally, fills, shared_lead, summed_lead, worth_leading


class LayerBlocks(Blocks, Protocol):
    """What the measures of a layer need of its blocks, beside what a solver does."""

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""

    def traces(self) -> Tensor:
        """Return the trace of every block, ``(nodes,)`` float64."""

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """Return each fold's share of ``N vᵀ H_i v``, ``(folds, nodes)`` float64, not divided by its samples."""


@dataclass(frozen=True)
class OuterBlocks:
    """Blocks of nodes that share one input vector a sample.

    Args:
        inputs: ``ã``, ``(rows, size)``, one row a sample or more.
        weights: ``h``, ``(rows, nodes)``.
        folds: fold of every row, ``(rows,)``.
        samples: how many samples the mean is over.
        semidefinite: whether no weight is negative.
    """

    inputs: Tensor
    weights: Tensor
    folds: Tensor
    samples: int
    semidefinite: bool = True

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
        return replace(self, weights=self.weights.index_select(1, index))

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        found = self.inputs.new_zeros(stop - start, self.size, self.size, dtype=torch.float64)
        step = _rows_at_once(self.size)
        for inputs, weights in zip(
            torch.split(self.inputs, step), torch.split(self.weights, step), strict=True
        ):
            inputs = inputs.double()
            weighted = weights[:, start:stop].T.double()[:, :, None] * inputs[None]
            found.baddbmm_(weighted.mT, inputs.expand(stop - start, -1, -1))
        return found.div_(self.samples)

    def lead(self, traces: Tensor, tolerance: float, folds: int) -> tuple[Lead | None, Tensor | None]:
        """Return what the shared inputs tell beforehand, and the shares of the folds at the vectors to start from.

        Nothing where that is not worth its price.
        """
        if not (self.semidefinite and worth_leading(self.nodes, self.size, self.samples)):
            return None, None
        lead, starts = shared_lead(self.inputs, self.weights, self.samples, traces, tolerance)
        responses = starts.responses(self.inputs)
        images = ((responses * self.weights).T @ self.inputs).div_(self.samples)
        return replace(lead, images=images), self._by_fold(responses, folds)

    def traces(self) -> Tensor:
        """``tr G_i = (1/N) Σ_n h_{n,i} ‖ã_n‖²``, ``(nodes,)`` float64."""
        squares: Tensor = torch.linalg.vector_norm(self.inputs, dim=1).square_()
        return (squares @ self.weights).double() / self.samples

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``Σ vᵀ J_n J_nᵀ v`` over the samples of each fold, ``(folds, nodes)`` float64."""
        return self._by_fold(self.inputs @ vectors.T, folds)

    def _by_fold(self, responses: Tensor, folds: int) -> Tensor:
        """Add up ``h u²`` of responses ``u``, which are lost by it."""
        forms = responses.square_().mul_(self.weights)
        found: Tensor = forms.new_zeros(folds, self.nodes).index_add_(0, self.folds, forms)
        return found.double()


@dataclass(frozen=True)
class GramBlocks:
    """Blocks added up whole, ``(folds, nodes, size, size)``, each fold for itself and not divided by samples.

    ``tally`` is what was noted of the rows of a layer with one position, all of its nodes being there.
    """

    sums: Tensor
    total: Tensor
    samples: int
    rows: int
    tally: Tally | None = None
    semidefinite: bool = True

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
        """``G V``, as rows ``Vᵀ G``: two to four times faster."""
        return (vectors[:, None] @ self.total).squeeze(1)

    def restricted(self, index: Tensor) -> GramBlocks:
        """Return the blocks of these nodes alone."""
        return replace(self, sums=self.sums[:, index], total=self.total[index], tally=None)

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        return self.total[start:stop].double()

    def lead(self, traces: Tensor, tolerance: float, folds: int) -> tuple[Lead | None, None]:
        """Return what the shared inputs would have told, and the sums do too."""
        if self.tally is None or not worth_leading(self.nodes, self.size, self.samples):
            return None, None
        return summed_lead(self.total, self.tally, self.samples, traces, tolerance), None

    def traces(self) -> Tensor:
        """``tr G_i``, ``(nodes,)`` float64."""
        return self.total.diagonal(dim1=1, dim2=2).double().sum(dim=1)

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``vᵀ (Σ J Jᵀ) v`` of each fold, ``(folds, nodes)`` float64."""
        images = (vectors[:, None] @ self.sums[:folds]).squeeze(2)
        forms: Tensor = torch.linalg.vecdot(images, vectors)
        return forms.double()


@dataclass(frozen=True)
class RowBlocks:
    """Blocks known by their Jacobians, kept in parts ``(rows, nodes, size)``; ``folds`` of the rows of every part."""

    parts: Sequence[Tensor]
    folds: Sequence[Tensor]
    samples: int

    semidefinite = True

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.parts[0]

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return int(self.parts[0].shape[1])

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return int(self.parts[0].shape[2])

    @property
    def rank_bound(self) -> int:
        """One rank a row."""
        return min(self.size, sum(len(part) for part in self.parts))

    def product(self, vectors: Tensor) -> Tensor:
        """``G V = Jᵀ (J V) / N``."""
        found = vectors.new_zeros(self.nodes, 1, self.size)
        for part in self.parts:
            found.baddbmm_(_images(part, vectors), part.transpose(0, 1))
        return found.squeeze(1).div_(self.samples)

    def restricted(self, index: Tensor) -> RowBlocks:
        """Return the blocks of these nodes alone."""
        return replace(self, parts=[part.index_select(1, index) for part in self.parts])

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        found = self.like.new_zeros(stop - start, self.size, self.size, dtype=torch.float64)
        for part in self.parts:
            for some in torch.split(part[:, start:stop], _rows_at_once(self.size)):
                rows = some.double().transpose(0, 1)
                found.baddbmm_(rows.mT, rows)
        return found.div_(self.samples)

    def traces(self) -> Tensor:
        """``tr G_i``, ``(nodes,)`` float64."""
        norms = (torch.linalg.vector_norm(part, dim=2).double() for part in self.parts)
        return torch.stack([own.square().sum(dim=0) for own in norms]).sum(dim=0) / self.samples

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``Σ vᵀ J_n J_nᵀ v`` over the samples of each fold, ``(folds, nodes)`` float64."""
        found = self.like.new_zeros(folds, self.nodes)
        for part, owners in zip(self.parts, self.folds, strict=True):
            found.index_add_(0, owners, _images(part, vectors).squeeze(1).square_().T)
        return found.double()


def _images(rows: Tensor, vectors: Tensor) -> Tensor:
    """Return ``⟨J_{n,i}, v_i⟩`` of rows ``(rows, nodes, size)``, ``(nodes, 1, rows)``: in this order it is fastest."""
    return vectors[:, None] @ rows.permute(1, 2, 0)


def _rows_at_once(size: int) -> int:
    """Return how many rows to add to blocks at once, so that they take about the memory of the blocks."""
    return max(64, 2 * size)


NodeBlocks = OuterBlocks | GramBlocks | RowBlocks | ImplicitBlocks


@dataclass(frozen=True)
class ScaledBlocks:
    """``D (G + wI) D`` for a diagonal ``D`` per node: the curvature that a preconditioned optimiser sees.

    ``decay`` is ``w``, a weight decay that goes through the preconditioner with the gradient, one number or one for
    each entry.
    """

    blocks: Blocks
    scale: Tensor  # (nodes, size): P^{-1/2}
    decay: float | Tensor = 0.0

    @property
    def semidefinite(self) -> bool:
        """Scaling changes no sign."""
        return self.blocks.semidefinite

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
        """Scaling does not raise a rank; decay fills it."""
        return self.size if fills(self.decay) else self.blocks.rank_bound

    def product(self, vectors: Tensor) -> Tensor:
        """``D (G + wI) D V``."""
        scaled = vectors * self.scale
        image = self.blocks.product(scaled)
        return (image.add_(scaled * self.decay) if fills(self.decay) else image) * self.scale

    def restricted(self, index: Tensor) -> ScaledBlocks | None:
        """Return the blocks of these nodes alone."""
        blocks = self.blocks.restricted(index)
        decay = self.decay[index] if isinstance(self.decay, Tensor) else self.decay
        return None if blocks is None else ScaledBlocks(blocks, self.scale[index], decay)

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        scale = self.scale[start:stop].double()
        added = self.blocks.matrices(start, stop)
        if isinstance(self.decay, Tensor):
            added = added + torch.diag_embed(self.decay[start:stop].to(added))
        elif self.decay:
            added = added + self.decay * torch.eye(self.size, dtype=added.dtype, device=added.device)
        return added * scale[:, :, None] * scale[:, None, :]
