"""Linear layers: an output is a row of the weight (a column, for the transposed layer of GPT-2) times the features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay.kinds.base import Layer, Samples, Share, Use
from nndiag.replay.kinds.columns import ColumnKind
from nndiag.replay.units import Units


class Linear(ColumnKind):
    """``z[..., u] = Σ_j W[u, j] a[..., j] + b[u]``: any axes before the features are rows."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {"linear": ("input", "weight", "bias")}

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where rows of the weight are nodes."""
        return use.weight.along_first and len(use.weight.shape) == 2

    def units(self, output: Tensor, layer: Layer) -> Units | None:
        """The last axis counts nodes; without one before it, nothing says what it is an output of."""
        return Units(output.dim() - 1, layer.nodes) if output.dim() > 1 else None

    def leading(self, use: Use, output_shape: Sequence[int]) -> Sequence[int]:
        """Everything before the features."""
        return output_shape[:-1]

    def spread(self, use: Use, output: Tensor) -> Tensor:
        """One position a row."""
        return output.reshape(-1, output.shape[-1], 1)

    def columns(self, use: Use) -> Tensor:
        """Return the input itself."""
        return use.input.reshape(-1, 1, use.input.shape[-1], 1)

    def operate(self, use: Use, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``a Wᵀ + b``."""
        return self.spread(use, F.linear(use.input, self.oriented(weight), bias))

    def parameter_gradient(self, use: Use, cotangents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``Σ r aᵀ`` and ``Σ r``."""
        flat = cotangents.squeeze(2).T
        weight = self.oriented(flat @ use.input.reshape(-1, use.input.shape[-1]))
        return weight, None if use.bias is None else flat.sum(dim=1)

    def count(self, use: Use) -> tuple[int, int]:
        """One position a row."""
        return math.prod(use.input.shape[:-1]), 1

    def merged(self, share: Share) -> Share:
        """Return one use on the inputs of all, such as those of the steps of a recurrent layer, side by side."""
        if len(share.uses) == 1:
            return share
        inputs = torch.cat([_by_sample(use) for use in share.uses], dim=1)
        samples = Samples(after=inputs.shape[1])
        use = replace(share.uses[0], inputs={"input": inputs}, samples=samples)
        return replace(share, uses=(use,))

    def oriented(self, weight: Tensor) -> Tensor:
        """Return the weight as torch has it in ``linear``, and back."""
        return weight


def _by_sample(use: Use) -> Tensor:
    """Return the inputs of a use as ``(batch, positions, features)``."""
    before, after = use.samples.before, use.samples.after
    rows = use.input.reshape(before, -1, after, use.input.shape[-1])
    return rows.movedim(1, 0).flatten(1, 2)


class TransposedLinear(Linear):
    """``z = b + a W``: the weight holds a node in every column (the ``Conv1D`` of GPT-2)."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "addmm": ("bias", "input", "weight"),
        "matmul": ("input", "weight"),
        "__matmul__": ("input", "weight"),
        "mm": ("input", "weight"),
    }

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where columns of the weight are nodes, and nothing is scaled on the way."""
        unscaled = use.option("beta", 1) == 1 and use.option("alpha", 1) == 1
        return not use.weight.along_first and len(use.weight.shape) == 2 and unscaled

    def oriented(self, weight: Tensor) -> Tensor:
        """Return the transpose."""
        return weight.T
