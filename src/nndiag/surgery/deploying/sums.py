"""Sums over places: matrix products and convolutions, and the biases that they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from nndiag.surgery.deploying.atoms import Atoms, Ids
from nndiag.surgery.deploying.consumers import Consumer, Taker
from nndiag.surgery.deploying.labels import Axis, Labels, united

if TYPE_CHECKING:
    from nndiag.surgery.deploying.following import Call, Following

_MEETS = "it is multiplied with what stays"
_SIDES = {
    "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"),
}  # fmt: skip


def product(mode: Following, call: Call) -> None:
    """``mm``, ``bmm``, ``addmm``: a sum over the last axis of one and the first of the other."""
    added = call.given.get("self") if call.name in ("addmm", "baddbmm") else None
    left, right = (call.given[name] for name in _SIDES[call.name])
    one, other = mode.labels(left), mode.labels(right)
    result = call.results[0]
    axis = united(mode.atoms, one.axes[-1], other.axes[-2], _MEETS)
    batch: tuple[Axis, ...] = ()
    if left.dim() == 3:
        batch = (united(mode.atoms, one.axes[0], other.axes[0], _MEETS),)
    axes = [*batch, one.axes[-2], other.axes[-1]]
    taker, simple = None, call.given.get("beta", 1) == 1 and call.given.get("alpha", 1) == 1
    if added is not None:
        axes = _with_added(mode, added, axes, result)
        name = mode.places.name(added)
        if name is not None and added.dim() == 1 and simple:
            taker = Taker(name)
    constant = one.constant and other.constant
    mode.give(result, Labels(tuple(axes), constant and (added is None or mode.labels(added).constant)))
    if not axis:
        return
    if other.constant or not one.constant:
        x, weight, outputs = left, right.movedim(-2, 0), -1 if other.constant and _alone(right) else None
        place = right.dim() - 2
    else:
        x, weight, outputs = right.movedim(-2, -1), left.movedim(-1, 0), None
        place, right = left.dim() - 1, left
    consumer = _read(mode, call, axis, x, weight, right, place, outputs, taker, borders=False)
    if taker is None and outputs is not None and added is None:
        mode.wait(result, consumer)


def _with_added(mode: Following, added: Tensor, axes: list[Axis], result: Tensor) -> list[Axis]:
    labels, ahead = mode.labels(added), result.dim() - added.dim()
    for i, axis in enumerate(labels.axes):
        if added.shape[i] == result.shape[ahead + i]:
            axes[ahead + i] = united(mode.atoms, axes[ahead + i], axis, "it is added to what stays")
    return axes


def _alone(weight: Tensor) -> bool:
    """Whether there is one matrix for the whole batch."""
    return weight.dim() == 2 or weight.shape[0] == 1


def convolution(mode: Following, call: Call) -> None:
    """A sum over the channels of each group, at every position."""
    x, weight, bias = (call.given[name] for name in ("input", "weight", "bias"))
    groups, transposed = call.given["groups"], call.given["transposed"]
    lx, lw = mode.labels(x), mode.labels(weight)
    inputs, outputs = (0, 1) if transposed else (1, 0)
    mode.fix(lw, "it is a position", range(2, weight.dim()))
    mode.fix(lx, "it is a position", range(2, x.dim()))
    out, channels = lw.axes[outputs], lx.axes[1]
    result = call.results[0]
    if groups > 1:
        out = _grouped(mode, call, channels, lw)
        channels = ()
    else:
        channels = united(mode.atoms, channels, lw.axes[inputs], _MEETS)
    if bias is not None:
        out = united(mode.atoms, out, mode.labels(bias).axes[0], "it is added to what stays")
    mode.give(result, Labels((lx.axes[0], out, *((),) * (x.dim() - 2))))
    if not channels:
        return
    name = None if bias is None else mode.places.name(bias)
    borders = transposed or any(p != 0 for p in call.given["padding"])
    consumer = _read(
        mode, call, channels, x.movedim(1, -1), weight.movedim(inputs, 0), weight, inputs,
        1 if lw.constant and not transposed else None, None if name is None else Taker(name), borders,
    )  # fmt: skip
    if bias is None and not transposed and lw.constant:
        mode.wait(result, consumer)


def _grouped(mode: Following, call: Call, channels: Axis, lw: Labels) -> Axis:
    """Make one class of the channels of each group, in and out; only a whole group can go."""
    groups, weight = call.given["groups"], call.given["weight"]
    reason = "a grouped convolution keeps its groups whole"
    if call.given["transposed"]:
        mode.fix(lw, reason, (0, 1))
        for factor in channels:
            mode.atoms.fix(factor, reason)
        return ()
    mode.fix(lw, reason, [1])
    out = lw.axes[0]
    if not channels or len(channels) > 1 or not out:
        for factor in (*channels, *out):
            mode.atoms.fix(factor, "a grouped convolution meets what stays")
        return out
    for factor in (channels[0], out[0]):
        one_per_group(mode.atoms, factor, groups, reason)
    joined = channels[0].reshape(groups, -1)[:, :1]
    mode.atoms.join(np.repeat(joined, weight.shape[0] // groups, axis=1).reshape(-1), out[0], reason)
    return out


def one_per_group(atoms: Atoms, factor: Ids, groups: int, reason: str) -> None:
    """Make one class of the atoms of each of so many groups of neighbours."""
    if groups == 1:
        atoms.fix(factor, reason)
        return
    grouped = factor.reshape(groups, -1)
    atoms.join(np.repeat(grouped[:, :1], grouped.shape[1], axis=1).reshape(-1), factor, reason)


def _read(
    mode: Following,
    call: Call,
    axis: Axis,
    x: Tensor,
    weight: Tensor,
    source: Tensor,
    place: int,
    outputs: int | None,
    taker: Taker | None,
    borders: bool,
) -> Consumer:
    viewed = mode.places.viewed(source, place)
    key = ("turn", mode.turn) if viewed is None else (*viewed, taker)
    outputs = None if outputs is None else outputs % weight.dim()
    constant = mode.labels(source).constant
    scale = float(call.results[0].abs().amax()) if call.results[0].numel() else 0.0
    return mode.consumers.read(
        key, axis, x, weight, constant, scale, outputs=outputs, taker=taker, borders=borders,
        parameter=None if viewed is None else viewed[:2], operation=call.name,
    )  # fmt: skip


def pass_on(mode: Following, call: Call) -> None:
    """A sum that has not met a bias keeps its outputs along the last axis, or as channels."""
    tensor, result = call.tensors[0], call.results[0]
    consumer = mode.waiting(tensor)
    if consumer is not None and tensor.shape[-1] == result.shape[-1] and consumer.operation != "convolution":
        mode.wait(result, consumer)


def meet_bias(mode: Following, call: Call) -> None:
    """Let a sum that waits for a bias take the parameter of one axis that is added to it."""
    if call.name != "add" or call.given.get("alpha", 1) != 1 or len(call.tensors) != 2:
        return
    for tensor, other in (call.tensors, call.tensors[::-1]):
        consumer, name = mode.waiting(tensor), mode.places.name(other)
        if consumer is None or name is None or other.dim() != 1 or other.shape[0] != tensor.shape[-1]:
            continue
        if consumer.operation != "convolution":
            consumer.meet(Taker(name))


def meet_norm(mode: Following, call: Call) -> None:
    """Let a convolution or product without a bias shift the running mean of the BatchNorm behind it."""
    consumer, mean = mode.waiting(call.given["input"]), call.given.get("running_mean")
    name = None if mean is None else mode.places.name(mean)
    if consumer is not None and name is not None and not call.given.get("training", False):
        consumer.meet(Taker(name, -1))
