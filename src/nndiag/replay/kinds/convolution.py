"""Convolutions in one, two and three dimensions: a node is an output channel, its inputs are the patches it
slides over.

Padding modes other than zeros need no code here: the module pads before it calls the function that is
seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay.kinds.base import Samples, Share, Use
from nndiag.replay.kinds.columns import ColumnKind

aten = torch.ops.aten
_ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Convolution(ColumnKind):
    """``z[n, i, t] = Σ_j W[i, j] · patch[n, t, j] + b[i]`` for the patch of input under the kernel at
    position ``t``.
    """

    functions = dict.fromkeys(("conv1d", "conv2d", "conv3d"), _ORDER)

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where the input has a batch axis, and kernels and groups are those of the layer."""
        groups = use.option("groups", 1) == use.layer.groups
        return groups and use.weight.along_first and output.dim() == len(use.weight.shape)

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

    def inputs(self, share: Share) -> Tensor:
        """Return the patches, or no more than strips of them.

        Where the kernel slides along the first axis one step at a time, its rows see the same input, shifted. Laid out
        along the other axes alone, ``(batch, groups, fan_in / kernel[0], extended positions)``, channels last,
        it takes a
        ``kernel[0]``-th of the memory, and every row of the kernel finds its patches in it as they are: see ``_rows``.
        """
        return self._strips(share.uses[0]) if _slides(share) else super().inputs(share)

    def jacobian(self, share: Share, inputs: Tensor, g: Tensor, start: int, stop: int) -> Tensor:
        """Return what ``ColumnKind`` says, by one product for each row of the kernel where there are strips."""
        if not _slides(share):
            return super().jacobian(share, inputs, g, start, stop)
        use, batch = share.uses[0], len(g)
        per_group = g.shape[1] // inputs.shape[1]
        first, last = start // per_group, (stop - 1) // per_group
        cotangents = g[:, start:stop].reshape(batch, last - first + 1, -1, g.shape[3])
        found = g.new_empty(batch, stop - start, share.width)
        kernel = use.weight.shape[2:]
        weights = found[:, :, : use.weight.width].unflatten(2, (-1, kernel[0], math.prod(kernel[1:])))  # type: ignore[no-untyped-call]
        for place, row in enumerate(_rows(use, inputs, g.shape[3])):
            product = cotangents @ row[:, first : last + 1].mT
            weights[:, :, :, place] = product.reshape(batch, stop - start, -1, weights.shape[2]).mT
        if use.bias is not None:
            found[:, :, -1] = g[:, start:stop, 0].sum(dim=2)
        return found

    def overlaps(self, share: Share, inputs: Tensor, positions: int) -> Tensor:
        """Return the same from strips."""
        if not _slides(share):
            return super().overlaps(share, inputs, positions)
        use, strips = share.uses[0], inputs[:, 0].mT
        if strips.shape[1] > 2 * positions:  # of a long kernel most rows have nothing in common
            found = inputs.new_full((), float(use.bias is not None))
            for row in _rows(use, inputs, positions):
                found = found + row[:, 0].mT @ row[:, 0]
            return found
        every = strips @ strips.mT  # each row of the kernel finds its own on the diagonal
        step = _step(use, inputs, positions)
        first, *others = (
            slice(place * step, place * step + positions) for place in range(use.weight.shape[2])
        )
        found = every[:, first, first].clone() if use.bias is None else every[:, first, first] + 1.0
        for own in others:
            found += every[:, own, own]
        return found

    def _strips(self, use: Use) -> Tensor:
        """Return the strips, channels last, and laid out position by position: so they are multiplied fastest."""
        geometry, groups = Geometry.of(use), use.layer.groups
        rank = len(geometry.kernel)
        strips = geometry.channels_last(use.input)
        for axis in range(1, rank):
            strips = strips.unfold(1 + axis, geometry.extent[axis], geometry.stride[axis])
            strips = strips[..., :: geometry.dilation[axis]]
        # (batch, *positions, channels, *kernel) -> (batch, groups, *positions, *kernel, channels of the group)
        strips = strips.unflatten(1 + rank, (groups, -1))  # type: ignore[no-untyped-call]
        positions, kernel = range(1, 1 + rank), range(3 + rank, 2 + 2 * rank)
        strips = strips.permute(0, 1 + rank, *positions, *kernel, 2 + rank)
        found: Tensor = strips.reshape(len(strips), groups, -1, use.weight.width // geometry.kernel[0]).mT
        return found

    def operate(self, use: Use, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of the input with other kernels and biases."""
        geometry = Geometry.of(use)
        padded, padding = geometry.padded(use.input)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(geometry.kernel) - 1]
        found = convolve(padded, weight, bias, geometry.stride, padding, geometry.dilation, use.layer.groups)
        return found.flatten(2)

    def parameter_gradient(self, use: Use, cotangents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of kernels and biases."""
        geometry = Geometry.of(use)
        padded, padding = geometry.padded(use.input)
        positions = geometry.positions(use.input)
        _, weight, bias = aten.convolution_backward(
            cotangents.reshape(*cotangents.shape[:2], *positions), padded, padded.new_empty(use.weight.shape),
            [use.weight.shape[0]], geometry.stride, padding, geometry.dilation, False, [0] * len(padding),
            use.layer.groups, [False, True, use.bias is not None],
        )  # fmt: skip
        return weight, bias if use.bias is not None else None

    def count(self, use: Use) -> tuple[int, int]:
        """Return batch and positions."""
        return use.input.shape[0], math.prod(Geometry.of(use).positions(use.input))


def _slides(share: Share) -> bool:
    """Whether strips do for patches."""
    use = share.uses[0]
    if len(share.uses) > 1 or use.samples != Samples() or use.weight.outer * use.weight.inner > 1:
        return False
    geometry = Geometry.of(use)
    return geometry.stride[0] == 1 < geometry.kernel[0] and Convolution().count(use)[1] > 1


def _rows(use: Use, strips: Tensor, positions: int) -> Iterator[Tensor]:
    """Yield what each row of the kernel sees, ``(batch, groups, width, positions)``: a part of the strips."""
    step = _step(use, strips, positions)
    for place in range(use.weight.shape[2]):
        yield strips[..., place * step : place * step + positions]


def _step(use: Use, strips: Tensor, positions: int) -> int:
    """Return how far a row of the kernel is ahead of the one before it."""
    return int(strips.shape[3] - positions) // (use.weight.shape[2] - 1)


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

    def padded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Return the input, and how far the convolution is to pad it itself: it need not copy what it pads."""
        ends = self.pad[::-1]  # both ends of an axis, the last first
        if ends[::2] == ends[1::2]:
            return x, ends[::2]
        return F.pad(x, self.pad), [0] * len(self.kernel)

    def channels_last(self, x: Tensor) -> Tensor:
        """Return the padded input with its channels last, laid out so, by one copy."""
        found = x.new_zeros(len(x), *self._sizes(x), x.shape[1])
        inside = found
        for axis, (before, size) in enumerate(zip(self.pad[-2::-2], x.shape[2:], strict=True)):
            inside = inside.narrow(1 + axis, before, size)
        inside.copy_(x.movedim(1, -1))
        return found

    def positions(self, x: Tensor) -> list[int]:
        """Return how often the kernel fits along every axis of an input, once that is padded."""
        sizes = self._sizes(x)
        return [(size - e) // s + 1 for size, e, s in zip(sizes, self.extent, self.stride, strict=True)]

    def _sizes(self, x: Tensor) -> list[int]:
        sides = zip(self.pad[-2::-2], self.pad[::-2], strict=True)
        return [size + before + after for size, (before, after) in zip(x.shape[2:], sides, strict=True)]


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
