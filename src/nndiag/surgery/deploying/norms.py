"""Norms: which channels go by themselves, and which are held together by their statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nndiag.surgery.deploying import sums
from nndiag.surgery.deploying.labels import Labels, united

if TYPE_CHECKING:
    from nndiag.surgery.deploying.following import Call, Following


def channels(mode: Following, call: Call) -> None:
    """BatchNorm: a channel of the input, with its statistics, scale and shift."""
    labels = mode.labels(call.given["input"])
    axis = labels.axes[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (other := call.given.get(name)) is not None:
            reason = "it is scaled together with what stays"
            axis = united(mode.atoms, axis, mode.labels(other).axes[0], reason)
    mode.give(call.results[0], Labels((labels.axes[0], axis, *labels.axes[2:])))
    for extra in call.results[1:]:
        mode.give(extra, Labels.none(extra.dim()))
    sums.meet_norm(mode, call)


def normalised(mode: Following, call: Call) -> None:
    """LayerNorm and RMSNorm: every place takes part in the statistics."""
    tensor, labels = call.given["input"], mode.labels(call.given["input"])
    count = len(call.given["normalized_shape"])
    last = range(tensor.dim() - count, tensor.dim())
    kind = "RMSNorm" if "rms" in call.name else "LayerNorm"
    reason = f"the statistics of a {kind} take in all units"
    mode.fix(labels, reason, last)
    for name in ("weight", "bias"):
        if (other := call.given.get(name)) is not None:
            mode.fix(mode.labels(other), reason)
    axes = (*labels.axes[: tensor.dim() - count], *((),) * count)
    mode.give(call.results[0], Labels(axes))
    for extra in call.results[1:]:
        mode.give(extra, Labels.none(extra.dim()))


def grouped_norm(mode: Following, call: Call) -> None:
    """GroupNorm: the channels of a group go together."""
    labels = mode.labels(call.given["input"])
    groups, axis = call.given["group"], labels.axes[1]
    for name in ("weight", "bias"):
        if (other := call.given.get(name)) is not None:
            axis = united(mode.atoms, axis, mode.labels(other).axes[0], "it is scaled with what stays")
    for factor in axis:
        sums.one_per_group(mode.atoms, factor, groups, "the statistics of a GroupNorm take in all units")
    mode.give(call.results[0], Labels((labels.axes[0], axis, *labels.axes[2:])))
    for extra in call.results[1:]:
        mode.give(extra, Labels.none(extra.dim()))
