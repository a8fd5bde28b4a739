"""Exact blocks of nodes that are applied at several positions of a sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PositionBlocks:
    """``H_i = (1/N) Σ_n A_nᵀ h_{n,i} A_n``: known by what nodes are applied to and the curvature in what they put out.

    Args:
        inputs: ``A``, ``(samples, positions, size)``.
        curvature: ``h``, symmetric, ``(samples, nodes, positions, positions)``.
        folds: fold of every sample, ``(samples,)``.
        samples: how many the mean is over.
    """

    inputs: Tensor
    curvature: Tensor
    folds: Tensor
    samples: int

    semidefinite = False

    @property
    def like(self) -> Tensor:
        """A tensor of the blocks' dtype and device."""
        return self.inputs

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return int(self.curvature.shape[1])

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return int(self.inputs.shape[2])

    @property
    def rank_bound(self) -> int:
        """One rank a position."""
        return min(self.size, self.inputs.shape[0] * self.inputs.shape[1])

    def product(self, vectors: Tensor) -> Tensor:
        """``H V = Σ_n A_nᵀ (h_n (A_n V)) / N``."""
        bent = self._bent(self._responses(vectors))
        return (bent.movedim(1, 0).flatten(1) @ self.inputs.flatten(0, 1)).div_(self.samples)

    def restricted(self, index: Tensor) -> PositionBlocks:
        """Return the blocks of these nodes alone."""
        return replace(self, curvature=self.curvature.index_select(1, index))

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the blocks themselves in float64."""
        inputs = self.inputs.double()
        flat = inputs.flatten(0, 1)
        found = [
            flat.T @ (self.curvature[:, node].double() @ inputs).flatten(0, 1) for node in range(start, stop)
        ]
        return torch.stack(found).div_(self.samples)

    def traces(self) -> Tensor:
        """``tr H_i = (1/N) Σ_n ⟨h_{n,i}, A_n A_nᵀ⟩``, ``(nodes,)`` float64."""
        overlaps = self.inputs @ self.inputs.mT
        by_sample = torch.einsum("nitu,ntu->ni", self.curvature, overlaps)
        return by_sample.double().sum(dim=0) / self.samples

    def forms_by_fold(self, vectors: Tensor, folds: int) -> Tensor:
        """``Σ vᵀ A_nᵀ h_n A_n v`` over the samples of each fold, ``(folds, nodes)`` float64."""
        responses = self._responses(vectors)
        forms = torch.linalg.vecdot(responses, self._bent(responses))
        found: Tensor = forms.new_zeros(folds, self.nodes).index_add_(0, self.folds, forms)
        return found.double()

    def _responses(self, vectors: Tensor) -> Tensor:
        """Return ``A_n v_i``, ``(samples, nodes, positions)``."""
        return (self.inputs @ vectors.T).mT

    def _bent(self, responses: Tensor) -> Tensor:
        return (self.curvature @ responses[..., None]).squeeze(3)
