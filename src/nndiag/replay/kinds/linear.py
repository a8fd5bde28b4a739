"""Linear layers: a node is a row of the weight; any axes between batch and features are positions."""

from __future__ import annotations

import math

from torch import Tensor, cat, nn
from torch.nn import functional as F

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
        nodes, fan_in = module.out_features, module.in_features
        return Layer(name, self, "Linear", nodes, fan_in, f"{prefix}weight", bias)

    def rows(self, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Return ``[W, b]``."""
        return stacked_rows(weight, bias)

    def units(self, output: Tensor, layer: Layer) -> Units:
        """The last axis counts nodes."""
        return Units(output.dim() - 1, layer.nodes)

    def columns(self, layer: Layer, use: Use) -> Tensor:
        """Return the input itself, ``(batch, 1, fan_in, positions)``."""
        return use.input.reshape(use.input.shape[0], 1, -1, layer.fan_in).mT

    def respond(self, layer: Layer, use: Use, rows: Tensor) -> Tensor:
        """Return ``a Vᵀ + v``."""
        inputs = use.input.reshape(use.input.shape[0], -1, layer.fan_in)
        if layer.bias is None:
            return F.linear(inputs, rows).mT
        return F.linear(inputs, rows[:, :-1], rows[:, -1]).mT

    def pull_back(self, layer: Layer, use: Use, cotangents: Tensor) -> Tensor:
        """Return ``Σ_{n,t} r a``, and ``Σ_{n,t} r`` for the bias."""
        inputs = use.input.reshape(-1, layer.fan_in)
        flat = cotangents.movedim(1, 0).reshape(layer.nodes, -1)
        weights = flat @ inputs
        return weights if layer.bias is None else cat([weights, flat.sum(dim=1, keepdim=True)], dim=1)

    def positions(self, output: Tensor, layer: Layer) -> int:
        """Everything between the batch and the features."""
        return math.prod(output.shape[1:-1])
