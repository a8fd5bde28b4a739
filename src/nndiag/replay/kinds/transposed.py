"""Transposed convolutions: a node is an output channel, which collects from every input that its kernel reaches.

Seen from the output it is a plain convolution: of the input spread out by the stride, padded by what the kernel reaches
over, with the kernel turned round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay.kinds.base import Use
from nndiag.replay.kinds.columns import ColumnKind
from nndiag.replay.kinds.convolution import per_axis

aten = torch.ops.aten
_ORDER = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class TransposedConvolution(ColumnKind):
    """``z[n, i, s·u + d·k − p] += Σ_j W[j, i, k] a[n, j, u]``, stride ``s``, dilation ``d`` and padding ``p``."""

    functions = dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _ORDER)

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where the input has a batch axis, and kernels and groups are those of the layer."""
        groups = use.option("groups", 1) == use.layer.groups
        return groups and not use.weight.along_first and output.dim() == len(use.weight.shape)

    def columns(self, use: Use) -> Tensor:
        """Return what every output position collects."""
        spread = Spread.of(use)
        rank = len(spread.kernel)
        patches = F.pad(_spread_out(use.input, spread.stride), spread.pad)
        for axis in range(rank):
            extent = spread.dilation[axis] * (spread.kernel[axis] - 1) + 1
            patches = patches.unfold(2 + axis, extent, 1)[..., :: spread.dilation[axis]]
        patches = patches.flip(tuple(range(2 + rank, 2 + 2 * rank)))
        patches = patches.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        return patches.reshape(patches.shape[0], use.layer.groups, use.weight.width, -1)

    def operate(self, use: Use, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the transposed convolution of the input with other kernels and biases."""
        spread = Spread.of(use)
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(spread.kernel) - 1]
        found = convolve(
            use.input, weight, bias, spread.stride, spread.padding, spread.output_padding, use.layer.groups,
            spread.dilation,
        )  # fmt: skip
        return found.flatten(2)

    def parameter_gradient(self, use: Use, cotangents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of kernels and biases."""
        spread = Spread.of(use)
        _, weight, bias = aten.convolution_backward(
            cotangents.reshape(*cotangents.shape[:2], *spread.positions(use.input)), use.input,
            use.input.new_empty(use.weight.shape), [use.layer.nodes], spread.stride, spread.padding, spread.dilation,
            True, spread.output_padding, use.layer.groups, [False, True, use.bias is not None],
        )  # fmt: skip
        return weight, bias if use.bias is not None else None

    def count(self, use: Use) -> tuple[int, int]:
        """Return batch and positions."""
        return use.input.shape[0], math.prod(Spread.of(use).positions(use.input))


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
        kernel = use.weight.shape[2:]
        rank = len(kernel)
        stride, padding, output_padding, dilation = (
            per_axis(use.option(name, default), rank)
            for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
        )
        pad: list[int] = []
        for axis in reversed(range(rank)):
            reach = dilation[axis] * (kernel[axis] - 1) - padding[axis]
            pad += [reach, reach + output_padding[axis]]
        return cls(kernel, stride, padding, output_padding, dilation, pad)

    def positions(self, inputs: Tensor) -> list[int]:
        """Return the size of the output along every axis."""
        return [
            (size - 1) * s - 2 * p + d * (k - 1) + o + 1
            for size, s, p, d, k, o in zip(
                inputs.shape[2:], self.stride, self.padding, self.dilation, self.kernel, self.output_padding,
                strict=True,
            )
        ]  # fmt: skip


def _spread_out(inputs: Tensor, stride: list[int]) -> Tensor:
    """Return the inputs with ``stride − 1`` zeros between neighbours."""
    sizes = [(size - 1) * step + 1 for size, step in zip(inputs.shape[2:], stride, strict=True)]
    wide = inputs.new_zeros(*inputs.shape[:2], *sizes)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = inputs
    return wide
