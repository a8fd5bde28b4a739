"""Functions that change shapes: where the atoms lie afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nndiag.surgery.deploying import sums
from nndiag.surgery.deploying.labels import Axis, Labels, axis_of, reshaped, stays, united

if TYPE_CHECKING:
    from nndiag.surgery.deploying.following import Call, Following


def view(mode: Following, call: Call) -> None:
    """The same entries, row-major, in another shape."""
    tensor, result = call.tensors[0], call.results[0]
    labels = mode.labels(tensor)
    axes = (
        ((),) * result.dim()
        if labels.bare or not tensor.numel()
        else reshaped(mode.atoms, labels.axes, tensor.shape, result.shape, mode.choose)
    )
    mode.give(result, Labels(axes, labels.constant))
    sums.pass_on(mode, call)


def ordered(mode: Following, call: Call) -> None:
    """Axes in another order."""
    result, labels = call.results[0], mode.labels(call.tensors[0])
    order = _order(call, result.dim())
    mode.give(result, Labels(tuple(labels.axes[i] for i in order), labels.constant))


def _order(call: Call, dims: int) -> list[int]:
    order = list(range(dims))
    if call.name == "t":
        return order[::-1]
    if call.name == "permute":
        return [d % dims for d in call.given["dims"]]
    first, second = call.given["dim0"] % dims, call.given["dim1"] % dims
    order[first], order[second] = order[second], order[first]
    return order


def unsqueeze(mode: Following, call: Call) -> None:
    """An axis of one place more."""
    result, labels = call.results[0], mode.labels(call.tensors[0])
    axes = list(labels.axes)
    axes.insert(call.given["dim"] % result.dim(), ())
    mode.give(result, Labels(tuple(axes), labels.constant))


def squeeze(mode: Following, call: Call) -> None:
    """Axes of one place less."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dims = call.given.get("dim", list(range(tensor.dim())))
    gone = {d % tensor.dim() for d in (dims if isinstance(dims, Sequence) else [dims])}
    axes = tuple(a for i, a in enumerate(labels.axes) if i not in gone or tensor.shape[i] != 1)
    mode.give(call.results[0], Labels(axes, labels.constant))


def expand(mode: Following, call: Call) -> None:
    """Axes of one place read many times over."""
    tensor, result, labels = call.tensors[0], call.results[0], mode.labels(call.tensors[0])
    ahead = result.dim() - tensor.dim()
    mode.give(result, Labels(((),) * ahead + labels.axes, labels.constant))


def repeat(mode: Following, call: Call) -> None:
    """Axes one after the other, several times."""
    tensor, result, labels = call.tensors[0], call.results[0], mode.labels(call.tensors[0])
    ahead = result.dim() - tensor.dim()
    axes: list[Axis] = [()] * ahead
    for i, axis in enumerate(labels.axes):
        times = call.given["repeats"][ahead + i]
        axes.append(tuple(np.tile(factor, times) for factor in axis))
    mode.give(result, Labels(tuple(axes), labels.constant))


def part(mode: Following, call: Call) -> None:
    """A slice along one axis, or several of them side by side (``split``, ``chunk``)."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dim, step = call.given["dim"] % tensor.dim(), call.given.get("step") or 1
    start = call.given.get("start") or 0
    size = tensor.shape[dim]
    begin = min(max(start + size if start < 0 else start, 0), size)
    for result in call.results:
        length = result.shape[dim]
        factors = [factor[begin : begin + length * step : step] for factor in labels.axes[dim]]
        axes = (*labels.axes[:dim], axis_of(factors), *labels.axes[dim + 1 :])
        mode.give(result, Labels(axes, labels.constant))
        begin += length * step


def select(mode: Following, call: Call) -> None:
    """One place of an axis, or each by itself: which one is written in the code, and none of them can go."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dim = call.given["dim"] % tensor.dim()
    mode.fix(labels, "the network picks it by its number", [dim])
    for result in call.results:
        axes = tuple(axis for i, axis in enumerate(labels.axes) if i != dim)
        mode.give(result, Labels(axes, labels.constant))


def cat(mode: Following, call: Call) -> None:
    """Axes one after the other."""
    result = call.results[0]
    parts = [t for t in call.given["tensors"] if t.dim() == result.dim()]
    every = [mode.labels(t) for t in parts]
    dim = call.given["dim"] % result.dim()
    axes: list[Axis] = []
    for i in range(result.dim()):
        if i == dim:
            axes.append(
                _joined([(labels.axes[i], t.shape[i]) for labels, t in zip(every, parts, strict=True)])
            )
            continue
        axis = every[0].axes[i]
        for labels in every[1:]:
            axis = united(mode.atoms, axis, labels.axes[i], "it is joined with what stays")
        axes.append(axis)
    mode.give(result, Labels(tuple(axes), all(labels.constant for labels in every)))


def _joined(parts: Sequence[tuple[Axis, int]]) -> Axis:
    most = max(len(axis) for axis, _ in parts)
    factors = []
    for turn in range(most):
        factors.append(
            np.concatenate([axis[turn] if turn < len(axis) else stays(length) for axis, length in parts])
        )
    return axis_of(factors)


def stack(mode: Following, call: Call) -> None:
    """Tensors side by side along an axis of their own."""
    result = call.results[0]
    every = [mode.labels(t) for t in call.given["tensors"]]
    dim = call.given["dim"] % result.dim()
    axes = list(every[0].axes)
    for labels in every[1:]:
        for i, axis in enumerate(labels.axes):
            axes[i] = united(mode.atoms, axes[i], axis, "it is joined with what stays")
    axes.insert(dim, ())
    mode.give(result, Labels(tuple(axes), all(labels.constant for labels in every)))


def padded(mode: Following, call: Call) -> None:
    """Constant padding; along an axis of units what is added stays."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    axes = list(labels.axes)
    pad = list(call.given["pad"])
    for turn in range(len(pad) // 2):
        i = tensor.dim() - 1 - turn
        ahead, behind = pad[2 * turn], pad[2 * turn + 1]
        if (ahead or behind) and axes[i]:
            if min(ahead, behind) < 0:
                mode.fix(labels, "it is cut by padding", [i])
                axes[i] = ()
                continue
            factors = [np.concatenate([stays(ahead), factor, stays(behind)]) for factor in axes[i]]
            axes[i] = axis_of(factors)
    mode.give(call.results[0], Labels(tuple(axes), labels.constant))


def halves(mode: Following, call: Call) -> None:
    """``glu``: the first half times the sigmoid of the second."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dim = call.given["dim"] % tensor.dim()
    half = tensor.shape[dim] // 2
    axes = list(labels.axes)
    first, second = ([f[part] for f in labels.axes[dim]] for part in (slice(half), slice(half, None)))
    axes[dim] = united(mode.atoms, axis_of(first), axis_of(second), "it is gated by what stays")
    mode.give(call.results[0], Labels(tuple(axes), labels.constant))
