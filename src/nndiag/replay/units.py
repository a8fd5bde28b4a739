"""Where a layer's units lie inside a tensor, and where they lie after an operation that keeps them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Units:
    """Units along ``axis`` of a tensor; each takes ``inner`` entries in a row there (1 unless flattened).

    ``count`` units, so the axis has ``count * inner`` entries.
    """

    axis: int
    count: int
    inner: int = 1

    def split(self, tensor: Tensor) -> Tensor:
        """Return the tensor as ``(batch, units, rest)``, the batch being dimension 0."""
        moved = tensor if self.axis == 1 else tensor.movedim(self.axis, 1)
        rest = math.prod(moved.shape[1:]) // max(self.count, 1)  # also of no sample at all
        return moved.reshape(moved.shape[0], self.count, rest)


KEEP_SHAPE = frozenset(
    "batch_norm instance_norm group_norm layer_norm rms_norm dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_dropout feature_alpha_dropout contiguous clone to float half bfloat16 double type type_as "
    "native_batch_norm requires_grad_".split()
)
POOLS = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d".split()
)
RESHAPES = frozenset("reshape view flatten unflatten squeeze unsqueeze view_as reshape_as".split())
AFFINE = frozenset(
    "add sub subtract rsub neg negative mul multiply __add__ __radd__ __iadd__ __mul__ __rmul__ __imul__ __sub__ "
    "__rsub__ __isub__ __neg__".split()
)
"""Affine in the units whichever argument holds them, as long as the others do not vary with the sample."""
QUOTIENTS = frozenset("div divide true_divide __truediv__ __itruediv__ __div__".split())
"""Affine in the units only where they are divided, not where they divide."""


def moved(
    name: str, units: Units, before: Sequence[int], after: Sequence[int], args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Units | None:  # fmt: skip
    """Return where units are after the function ``name``, or ``None`` where it does not keep them apart.

    Args:
        name: the function's name without the underscore of its in-place form.
        units: where they were.
        before: shape of the tensor that held them.
        after: shape of the result.
        args: positional arguments of the call, the tensor first.
        kwargs: keyword arguments of the call.
    """
    if name in KEEP_SHAPE:
        return units if tuple(before) == tuple(after) else None
    if name in POOLS:
        kept = len(before) == len(after) and before[units.axis] == after[units.axis] and units.axis == 1
        return units if kept else None
    if name in RESHAPES:
        return _reshaped(units, before, after)
    if name in ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "mT"):
        return _permuted(name, units, len(before), args[1:], kwargs)
    if name in AFFINE or name in QUOTIENTS:
        return units if tuple(before) == tuple(after) else None
    return None


def _reshaped(units: Units, before: Sequence[int], after: Sequence[int]) -> Units | None:
    """Find the axis of the new shape that holds whole units in order, row-major."""
    if len(after) < 2:  # samples need an axis of their own
        return None
    stride = units.inner * math.prod(before[units.axis + 1 :])  # entries that one unit takes
    period = units.count * stride
    following = math.prod(after)
    for axis, length in enumerate(after):
        following //= max(length, 1)
        if length * following == period and stride % following == 0:
            inner = stride // following
            if length == units.count * inner:
                return Units(axis, units.count, inner)
    return None


def _permuted(
    name: str, units: Units, rank: int, rest: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Units | None:
    order = list(range(rank))
    values = [*rest, *kwargs.values()]
    if name == "t":
        order = order[::-1]
    elif name == "mT":
        order[-2:] = order[:-3:-1]
    elif name == "permute":
        order = [int(d) % rank for d in (values[0] if isinstance(values[0], Sequence) else values)]
    elif name in ("transpose", "swapaxes", "swapdims"):
        first, second = (int(v) % rank for v in values[:2])
        order[first], order[second] = order[second], order[first]
    elif all(isinstance(v, int) for v in values[:2]):
        order.insert(int(values[1]) % rank, order.pop(int(values[0]) % rank))
    else:
        return None
    return replace(units, axis=order.index(units.axis))
