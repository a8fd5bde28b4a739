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
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay.kinds.base import Use
from nndiag.replay.kinds.columns import ColumnKind

aten = torch.ops.aten
_ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Convolution(ColumnKind):
    """``z[n, i, t] = Σ_j W[i, j] · patch[n, t, j] + b[i]`` for the patch of input under the kernel at
    position ``t``.
    """

    functions = dict.fromkeys(("conv1d", "conv2d", "conv3d"), _ORDER)

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where the input has a batch axis."""
        return output.dim() == len(use.weight.shape)

    def columns(self, use: Use) -> Tensor:
        """Return the patches."""
        geometry, groups = Geometry.of(use), use.layer.groups
        rank = len(geometry.kernel)
        patches = F.pad(use.input, geometry.pad)
        for axis in range(rank):
            patches = patches.unfold(2 + axis, geometry.extent[axis], geometry.stride[axis])
            patches = patches[..., :: geometry.dilation[axis]]
        batch, channels = patches.shape[:2]
        # (batch, channels, *positions, *kernel) -> (batch, groups, channels of the group * kernel, positions)
        patches = patches.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        return patches.reshape(batch, groups, channels // groups * math.prod(geometry.kernel), -1)

    def operate(self, use: Use, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of the input with other kernels and biases."""
        geometry = Geometry.of(use)
        padded = F.pad(use.input, geometry.pad)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(geometry.kernel) - 1]
        found = convolve(padded, weight, bias, geometry.stride, 0, geometry.dilation, use.layer.groups)
        return found.flatten(2)

    def parameter_gradient(self, use: Use, cotangents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of kernels and biases."""
        geometry = Geometry.of(use)
        rank = len(geometry.kernel)
        padded = F.pad(use.input, geometry.pad)
        positions = geometry.positions(padded)
        _, weight, bias = aten.convolution_backward(
            cotangents.reshape(*cotangents.shape[:2], *positions), padded, padded.new_empty(use.weight.shape),
            [use.weight.shape[0]], geometry.stride, [0] * rank, geometry.dilation, False, [0] * rank, use.layer.groups,
            [False, True, use.bias is not None],
        )  # fmt: skip
        return weight, bias if use.bias is not None else None

    def count(self, use: Use) -> tuple[int, int]:
        """Return batch and positions."""
        geometry = Geometry.of(use)
        sizes = [size + sum(geometry.pad[-2 * i - 2 :][:2]) for i, size in enumerate(use.input.shape[2:])]
        return use.input.shape[0], math.prod(geometry.along(sizes))


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
        kernel = use.weight.shape[2:]
        rank = len(kernel)
        dilation = per_axis(use.option("dilation", 1), rank)
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        stride = per_axis(use.option("stride", 1), rank)
        return cls(kernel, stride, dilation, extent, _padding(use.option("padding", 0), extent))

    def positions(self, padded: Tensor) -> list[int]:
        """Return how often the kernel fits along every axis of a padded input."""
        return self.along(padded.shape[2:])

    def along(self, sizes: Sequence[int]) -> list[int]:
        """Return the same from the sizes of a padded input."""
        return [(size - e) // s + 1 for size, e, s in zip(sizes, self.extent, self.stride, strict=True)]


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
