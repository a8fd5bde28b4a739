"""Gauss-Newton blocks of a layer's nodes as products: ``G_i = (1/N) Σ_{n,c} J_{n,c,i} J_{n,c,i}ᵀ``.

Two forms. With one position, ``J`` is an outer product and ``G_i = (1/N) Σ_n h_{n,i} ã_n ã_nᵀ`` with
``h_{n,i} = Σ_c g_{c,n,i}²``:
only inputs and ``h`` are kept, and one product of all nodes is two matrix products. With several positions
the
Jacobians of single samples are formed for a tile of nodes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.replay.jacobian import input_columns, jacobian, tiles
from nndiag.replay.kinds import Layer
from nndiag.replay.kinds.base import Use

TILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class OuterBlocks:
    """Blocks of nodes that share one input vector a sample.

    Args:
        inputs: ``ã``, ``(samples, size)``.
        weights: ``h``, ``(samples, nodes)``.
    """

    inputs: Tensor
    weights: Tensor

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
        """One rank a sample."""
        return min(self.size, int(self.inputs.shape[0]))

    @property
    def samples(self) -> int:
        """How many samples the mean is over."""
        return int(self.inputs.shape[0])

    def product(self, vectors: Tensor) -> Tensor:
        """``G V = ((ã Vᵀ) ⊙ h)ᵀ ã / N``."""
        images = (self.inputs @ vectors.T).mul_(self.weights)
        return (images.T @ self.inputs).div_(self.samples)

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        inputs = self.inputs.double()
        weighted = self.weights[:, start:stop].T.double()[:, :, None] * inputs[None]
        return weighted.mT @ inputs / self.samples

    def traces(self) -> Tensor:
        """``tr G_i = (1/N) Σ_n h_{n,i} ‖ã_n‖²``, ``(nodes,)`` float64."""
        norms = self.inputs.double().square().sum(dim=1)
        return (norms @ self.weights.double()) / self.samples

    def forms_by_sample(self, vectors: Tensor) -> Tensor:
        """``vᵀ J_n J_nᵀ v`` per sample and node, ``(samples, nodes)``: their mean is ``vᵀ G v``."""
        return (self.inputs @ vectors.T).square() * self.weights


@dataclass(frozen=True)
class JacobianBlocks:
    """Blocks from Jacobians, ``(nodes, samples · columns, size)``, a sample's columns side by side in
    ``sample_of``."""

    jacobians: Tensor
    sample_of: Tensor
    samples: int

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.jacobians

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return int(self.jacobians.shape[0])

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return int(self.jacobians.shape[2])

    @property
    def rank_bound(self) -> int:
        """One rank a row."""
        return min(self.size, int(self.jacobians.shape[1]))

    def product(self, vectors: Tensor) -> Tensor:
        """``G V = Jᵀ(J V) / N``."""
        images = self.jacobians @ vectors[:, :, None]
        return (self.jacobians.mT @ images).squeeze(2).div_(self.samples)

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        part = self.jacobians[start:stop].double()
        return part.mT @ part / self.samples

    def traces(self) -> Tensor:
        """``tr G_i = ‖J_i‖² / N``, ``(nodes,)`` float64."""
        return self.jacobians.double().square().sum(dim=(1, 2)) / self.samples

    def forms_by_sample(self, vectors: Tensor) -> Tensor:
        """``vᵀ J_n J_nᵀ v`` per sample and node, ``(samples, nodes)``."""
        squares = (self.jacobians @ vectors[:, :, None]).squeeze(2).square().T
        return squares.new_zeros(self.samples, self.nodes).index_add_(0, self.sample_of, squares)


NodeBlocks = OuterBlocks | JacobianBlocks


@dataclass(frozen=True)
class ScaledBlocks:
    """``D G D`` for a diagonal ``D`` per node: the curvature that a preconditioned optimiser sees (``D =
    P^{-1/2}``)."""

    blocks: NodeBlocks
    scale: Tensor  # (nodes, size)

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

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        scale = self.scale[start:stop].double()
        return self.blocks.matrices(start, stop) * scale[:, :, None] * scale[:, None, :]


class Capture:
    """What a replay keeps of one layer for its curvature, batch by batch."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._inputs: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._batches: list[tuple[tuple[Use, ...], Tensor]] = []
        self.samples = 0

    def add(self, uses: tuple[Use, ...], positions: int, gradients: Sequence[Tensor]) -> None:
        """Keep a batch.

        Args:
            uses: the calls of the layer.
            positions: positions of all of them together.
            gradients: per column of the loss curvature, ``(batch, nodes, positions)``.
        """
        batch = uses[0].input.shape[0]
        if positions == 1 and self.layer.groups == 1:
            self._inputs.append(input_columns(self.layer, uses[0])[:, 0, 0].detach())
            weights = gradients[0].new_zeros(batch, self.layer.nodes)
            for g in gradients:
                weights.addcmul_(g[:, :, 0], g[:, :, 0])
            self._weights.append(weights)
        else:
            self._batches.append((uses, torch.stack(list(gradients), dim=1)))
        self.samples += batch

    def tiles(self) -> Iterator[tuple[int, int, NodeBlocks]]:
        """Yield ranges of nodes with their blocks; together they cover the layer."""
        if self._inputs:
            yield 0, self.layer.nodes, OuterBlocks(torch.cat(self._inputs), torch.cat(self._weights))
            return
        rows = sum(g.shape[0] * g.shape[1] for _, g in self._batches)
        itemsize = self._batches[0][1].element_size()
        for start, stop in tiles(self.layer, rows, itemsize, TILE_BYTES):
            yield start, stop, self._jacobians(start, stop)

    def _jacobians(self, start: int, stop: int) -> JacobianBlocks:
        parts, owners, offset = [], [], 0
        for uses, stacked in self._batches:
            columns = torch.cat([input_columns(self.layer, use) for use in uses], dim=2).detach()
            batch = stacked.shape[0]
            for column in range(stacked.shape[1]):
                parts.append(jacobian(self.layer, columns, stacked[:, column], start, stop).movedim(0, 1))
                owners.append(torch.arange(offset, offset + batch, device=stacked.device))
            offset += batch
        return JacobianBlocks(torch.cat(parts, dim=1), torch.cat(owners), self.samples)
