"""Linear layers: a node is a row of the weight; any axes between batch and features are positions."""

from __future__ import annotations

import math

from torch import Tensor, nn

from nndiag.replay.kinds.base import Kind, Layer, Use, stacked_rows
from nndiag.replay.units import Units


class Linear(Kind):
    """``z[n, t, i] = Σ_j W[i, j] a[n, t, j] + b[i]``."""

    functions = frozenset({"linear"})

    def describe(self, name: str, module: nn.Module, prefix: str) -> Layer | None:
        """Return the layer of an ``nn.Linear``."""
        if not isinstance(module, nn.Linear):
            return None
        bias = f"{prefix}bias" if module.bias is not None else None
        return Layer(
            name,
            self,
            type(module).__name__,
            module.out_features,
            module.in_features,
            f"{prefix}weight",
            bias,
        )

    def rows(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``[W, b]``."""
        return stacked_rows(weight, bias)

    def units(self, output: Tensor, layer: Layer) -> Units:
        """The last axis counts nodes."""
        return Units(output.dim() - 1, layer.nodes)

    def columns(self, layer: Layer, use: Use) -> Tensor:
        """Return the input itself, ``(batch, 1, positions, fan_in)``."""
        return use.input.reshape(use.input.shape[0], 1, -1, layer.fan_in)

    def positions(self, output: Tensor, layer: Layer) -> int:
        """Everything between the batch and the features."""
        return math.prod(output.shape[1:-1])
