"""Transposed convolutions: a node is an output channel, which collects from every input that its kernel reaches.

Seen from the output it is a plain convolution: of the input spread out by the stride, padded by what the kernel reaches
over, with the kernel turned round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.replay.kinds.base import Kind, Layer, Use
from nndiag.replay.kinds.convolution import per_axis
from nndiag.replay.units import Units

aten = torch.ops.aten
_ORDER = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class TransposedConvolution(Kind):
    """``z[n, i, s·u + d·k − p] += Σ_j W[j, i, k] a[n, j, u]``, stride ``s``, dilation ``d`` and padding ``p``."""

    functions = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})

    def describe(self, name: str, module: nn.Module, prefix: str) -> Layer | None:
        """Return the layer of an ``nn.ConvTranspose1d``, ``2d`` or ``3d``."""
        if not isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            return None
        fan_in = module.in_channels // module.groups * math.prod(module.weight.shape[2:])
        bias = f"{prefix}bias" if module.bias is not None else None
        label, nodes = type(module).__name__, module.out_channels
        return Layer(name, self, label, nodes, fan_in, f"{prefix}weight", bias, module.groups)

    def rows(self, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Return the kernels that lead to each output channel, flattened, with their biases."""
        inputs = weight.shape[0] // groups
        grouped = weight.reshape(groups, inputs, *weight.shape[1:]).transpose(1, 2)
        rows = grouped.reshape(groups * weight.shape[1], -1)
        return rows if bias is None else torch.cat([rows, bias.reshape(-1, 1)], dim=1)

    def units(self, output: Tensor, layer: Layer) -> Units:
        """Channels follow the batch."""
        return Units(1, layer.nodes)

    def positions(self, output: Tensor, layer: Layer) -> int:
        """Everything after the channels."""
        return math.prod(output.shape[2:])

    def columns(self, layer: Layer, use: Use) -> Tensor:
        """Return what every output position collects, ``(batch, groups, fan_in, positions)``."""
        spread = Spread.of(use)
        rank = len(spread.kernel)
        patches = F.pad(_spread_out(use.input, spread.stride), spread.pad)
        for axis in range(rank):
            extent = spread.dilation[axis] * (spread.kernel[axis] - 1) + 1
            patches = patches.unfold(2 + axis, extent, 1)[..., :: spread.dilation[axis]]
        patches = patches.flip(tuple(range(2 + rank, 2 + 2 * rank)))
        patches = patches.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        return patches.reshape(patches.shape[0], layer.groups, layer.fan_in, -1)

    def respond(self, layer: Layer, use: Use, rows: Tensor) -> Tensor:
        """Return the transposed convolution of the input with other kernels and biases."""
        spread = Spread.of(use)
        weight, bias = (rows, None) if layer.bias is None else (rows[:, :-1], rows[:, -1])
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(spread.kernel) - 1]
        kernels = self._kernels(layer, use, weight)
        found = convolve(
            use.input, kernels, bias, spread.stride, spread.padding, spread.output_padding, layer.groups,
            spread.dilation,
        )  # fmt: skip
        return found.flatten(2)

    def pull_back(self, layer: Layer, use: Use, cotangents: Tensor) -> Tensor:
        """Return the gradient of kernels and biases."""
        spread = Spread.of(use)
        positions = [
            (size - 1) * s - 2 * p + d * (k - 1) + o + 1
            for size, s, p, d, k, o in zip(
                use.input.shape[2:], spread.stride, spread.padding, spread.dilation, spread.kernel,
                spread.output_padding, strict=True,
            )
        ]  # fmt: skip
        _, weight, bias = aten.convolution_backward(
            cotangents.reshape(*cotangents.shape[:2], *positions), use.input, use.input.new_empty(use.weight_shape),
            [layer.nodes], spread.stride, spread.padding, spread.dilation, True, spread.output_padding, layer.groups,
            [False, True, layer.bias is not None],
        )  # fmt: skip
        return self.rows(weight, bias if layer.bias is not None else None, layer.groups)

    def _kernels(self, layer: Layer, use: Use, weight: Tensor) -> Tensor:
        """Return flattened rows as a weight: the way back from ``rows``."""
        inputs, outputs = use.weight_shape[0] // layer.groups, use.weight_shape[1]
        grouped = weight.reshape(layer.groups, outputs, inputs, *use.weight_shape[2:]).transpose(1, 2)
        return grouped.reshape(use.weight_shape)


@dataclass(frozen=True)
class Spread:
    """How a kernel spreads: one number an axis; ``pad`` is the argument of ``F.pad``, the last axis first."""

    kernel: tuple[int, ...]
    stride: list[int]
    padding: list[int]
    output_padding: list[int]
    dilation: list[int]
    pad: list[int]

    @classmethod
    def of(cls, use: Use) -> Spread:
        """Return the geometry of a call."""
        kernel = use.weight_shape[2:]
        rank = len(kernel)
        stride, padding, output_padding, dilation = (
            per_axis(use.option(_ORDER, name, default), rank)
            for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
        )
        pad: list[int] = []
        for axis in reversed(range(rank)):
            reach = dilation[axis] * (kernel[axis] - 1) - padding[axis]
            pad += [reach, reach + output_padding[axis]]
        return cls(kernel, stride, padding, output_padding, dilation, pad)


def _spread_out(inputs: Tensor, stride: list[int]) -> Tensor:
    """Return the inputs with ``stride − 1`` zeros between neighbours."""
    sizes = [(size - 1) * step + 1 for size, step in zip(inputs.shape[2:], stride, strict=True)]
    wide = inputs.new_zeros(*inputs.shape[:2], *sizes)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = inputs
    return wide
