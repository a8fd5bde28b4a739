"""Convolutions in one, two and three dimensions: a node is an output channel, its inputs are the patches it
slides over.

Padding modes other than zeros need no code here: the module pads before it calls the function that is
seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.replay.kinds.base import Kind, Layer, Use, stacked_rows
from nndiag.replay.units import Units

aten = torch.ops.aten
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

    def rows(self, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Return the flattened kernels with their biases."""
        return stacked_rows(weight, bias)

    def units(self, output: Tensor, layer: Layer) -> Units:
        """Channels follow the batch."""
        return Units(1, layer.nodes)

    def positions(self, output: Tensor, layer: Layer) -> int:
        """Everything after the channels."""
        return math.prod(output.shape[2:])

    def columns(self, layer: Layer, use: Use) -> Tensor:
        """Return the patches, ``(batch, groups, fan_in, positions)``."""
        geometry = Geometry.of(use)
        rank = len(geometry.kernel)
        patches = F.pad(use.input, geometry.pad)
        for axis in range(rank):
            patches = patches.unfold(2 + axis, geometry.extent[axis], geometry.stride[axis])
            patches = patches[..., :: geometry.dilation[axis]]
        batch, channels = patches.shape[:2]
        # (batch, channels, *positions, *kernel) -> (batch, groups, channels of the group * kernel, positions)
        patches = patches.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        return patches.reshape(batch, layer.groups, channels // layer.groups * math.prod(geometry.kernel), -1)

    def respond(self, layer: Layer, use: Use, rows: Tensor) -> Tensor:
        """Return the convolution of the input with other kernels and biases."""
        geometry = Geometry.of(use)
        weight, bias = (rows, None) if layer.bias is None else (rows[:, :-1], rows[:, -1])
        kernels = weight.reshape(use.weight_shape)
        padded = F.pad(use.input, geometry.pad)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(geometry.kernel) - 1]
        found = convolve(padded, kernels, bias, geometry.stride, 0, geometry.dilation, layer.groups)
        return found.flatten(2)

    def pull_back(self, layer: Layer, use: Use, cotangents: Tensor) -> Tensor:
        """Return the gradient of kernels and biases."""
        geometry = Geometry.of(use)
        rank = len(geometry.kernel)
        padded = F.pad(use.input, geometry.pad)
        positions = [
            (padded.shape[2 + i] - geometry.extent[i]) // geometry.stride[i] + 1 for i in range(rank)
        ]
        _, weight, bias = aten.convolution_backward(
            cotangents.reshape(*cotangents.shape[:2], *positions), padded, padded.new_empty(use.weight_shape),
            [layer.nodes], geometry.stride, [0] * rank, geometry.dilation, False, [0] * rank, layer.groups,
            [False, True, layer.bias is not None],
        )  # fmt: skip
        return stacked_rows(weight, bias if layer.bias is not None else None)


@dataclass(frozen=True)
class Geometry:
    """How a kernel slides: one number an axis; ``pad`` is the argument of ``F.pad``, the last axis first."""

    kernel: tuple[int, ...]
    stride: list[int]
    dilation: list[int]
    extent: list[int]
    pad: list[int]

    @classmethod
    def of(cls, use: Use) -> Geometry:
        """Return the geometry of a call."""
        kernel = use.weight_shape[2:]
        rank = len(kernel)
        dilation = per_axis(use.option(_ORDER, "dilation", 1), rank)
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        stride = per_axis(use.option(_ORDER, "stride", 1), rank)
        return cls(kernel, stride, dilation, extent, _padding(use.option(_ORDER, "padding", 0), extent))


def per_axis(value: int | Sequence[int], rank: int) -> list[int]:
    """Return one number an axis from an option that may be one number for all."""
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
        sides = [(p, p) for p in per_axis(padding, rank)]
    return [side for pair in reversed(sides) for side in pair]
