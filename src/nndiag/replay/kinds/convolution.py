"""Convolutions in one, two and three dimensions: a node is an output channel, its inputs are the patches it
slides over.

Padding modes other than zeros need no code here: the module pads before it calls the function that is
seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.replay.kinds.base import Kind, Layer, Use, stacked_rows
from nndiag.replay.units import Units

_ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Convolution(Kind):
    """``z[n, i, t] = Σ_j W[i, j] · patch[n, t, j] + b[i]`` for the patch of input under the kernel at
    position ``t``.
    """

    functions = frozenset({"conv1d", "conv2d", "conv3d"})

    def describe(self, name: str, module: nn.Module, prefix: str) -> Layer | None:
        """Return the layer of an ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``."""
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return None
        fan_in = math.prod(module.weight.shape[1:])
        bias = f"{prefix}bias" if module.bias is not None else None
        label = type(module).__name__
        nodes = module.out_channels
        return Layer(name, self, label, nodes, fan_in, f"{prefix}weight", bias, module.groups)

    def rows(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the flattened kernels with their biases."""
        return stacked_rows(weight, bias)

    def units(self, output: Tensor, layer: Layer) -> Units:
        """Channels follow the batch."""
        return Units(1, layer.nodes)

    def positions(self, output: Tensor, layer: Layer) -> int:
        """Everything after the channels."""
        return math.prod(output.shape[2:])

    def columns(self, layer: Layer, use: Use) -> Tensor:
        """Return the patches, ``(batch, groups, positions, fan_in)``."""
        kernel = use.weight_shape[2:]
        rank = len(kernel)
        stride = _per_axis(_option(use, "stride", 1), rank)
        dilation = _per_axis(_option(use, "dilation", 1), rank)
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        patches = F.pad(use.input, _padding(_option(use, "padding", 0), extent))
        for axis in range(rank):
            patches = patches.unfold(2 + axis, extent[axis], stride[axis])[..., :: dilation[axis]]
        batch = patches.shape[0]
        # (batch, channels, *positions, *kernel) -> (batch, groups, positions, channels of the group * kernel)
        patches = patches.reshape(batch, layer.groups, -1, *patches.shape[2:])
        patches = patches.movedim(2, 2 + rank)
        return patches.reshape(batch, layer.groups, -1, layer.fan_in)


def _option(use: Use, name: str, default: Any) -> Any:
    place = _ORDER.index(name)
    return use.args[place] if len(use.args) > place else use.kwargs.get(name, default)


def _per_axis(value: int | Sequence[int], rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _padding(padding: str | int | Sequence[int], extent: Sequence[int]) -> list[int]:
    """Return the argument of ``F.pad``: last axis first, both sides of each."""
    rank = len(extent)
    if padding == "valid":
        sides = [(0, 0)] * rank
    elif padding == "same":  # torch puts the odd one at the end
        sides = [((e - 1) // 2, (e - 1) - (e - 1) // 2) for e in extent]
    else:
        assert not isinstance(padding, str)
        sides = [(p, p) for p in _per_axis(padding, rank)]
    return [side for pair in reversed(sides) for side in pair]
