"""What each function does to the atoms of its arguments; one that is not listed here fixes them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nndiag.surgery.deploying import sums
from nndiag.surgery.deploying.labels import Axis, Labels, axis_of, reshaped, stays, united

if TYPE_CHECKING:
    from nndiag.surgery.deploying.following import Call, Following, Handler


def see(mode: Following, call: Call) -> None:
    """Give the results of a call their labels."""
    handler = _HANDLERS.get(call.name) or (_pointwise if call.pointwise else None)
    if handler is not None:
        handler(mode, call)
        return
    for tensor in call.tensors:
        mode.fix(mode.labels(tensor), f"it goes through {call.name}, which is not followed")
    for result in call.results:
        mode.give(result, Labels.none(result.dim()))


def _pointwise(mode: Following, call: Call) -> None:
    """Places that meet are one; an axis of one place is read by all."""
    (result,) = call.results[:1]
    reason = "it is joined with what stays"
    axes: list[Axis | None] = [None] * result.dim()
    constant = True
    for tensor in call.tensors:
        labels = mode.labels(tensor)
        constant &= labels.constant
        ahead = result.dim() - tensor.dim()
        for i, axis in enumerate(labels.axes):
            size = result.shape[ahead + i]
            if tensor.shape[i] != size:
                continue
            known = axes[ahead + i]
            axes[ahead + i] = axis if known is None else united(mode.atoms, known, axis, size, reason)
    given = Labels(tuple(axis or () for axis in axes), constant)
    for one in call.results:
        mode.give(one, given if one.shape == result.shape else Labels.none(one.dim()))
    sums.meet_bias(mode, call)


def _same(mode: Following, call: Call) -> None:
    """The first tensor's labels, for functions of its shape."""
    labels = mode.labels(call.tensors[0])
    for result in call.results:
        if result.shape == call.tensors[0].shape:
            mode.give(result, labels)
    sums.pass_on(mode, call)


def _made(mode: Following, call: Call) -> None:
    """A tensor that is made on the way: its places are new."""
    for result in call.results:
        axes = tuple((mode.atoms.fresh(size),) if size > 1 else () for size in result.shape)
        mode.give(result, Labels(axes, constant="rand" not in call.name))


def _view(mode: Following, call: Call) -> None:
    tensor, result = call.tensors[0], call.results[0]
    labels = mode.labels(tensor)
    axes = (
        ((),) * result.dim()
        if labels.bare or not tensor.numel()
        else reshaped(mode.atoms, labels.axes, tensor.shape, result.shape, mode.choose)
    )
    mode.give(result, Labels(axes, labels.constant))
    sums.pass_on(mode, call)


def _ordered(mode: Following, call: Call) -> None:
    """Axes in another order."""
    tensor, result = call.tensors[0], call.results[0]
    labels, order = (
        mode.labels(tensor),
        _order(call, tensor.dim() if call.result is not tensor else result.dim()),
    )
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


def _unsqueeze(mode: Following, call: Call) -> None:
    result, labels = call.results[0], mode.labels(call.tensors[0])
    axes = list(labels.axes)
    axes.insert(call.given["dim"] % result.dim(), ())
    mode.give(result, Labels(tuple(axes), labels.constant))


def _squeeze(mode: Following, call: Call) -> None:
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dims = call.given.get("dim", list(range(tensor.dim())))
    gone = {d % tensor.dim() for d in (dims if isinstance(dims, Sequence) else [dims])}
    axes = tuple(a for i, a in enumerate(labels.axes) if i not in gone or tensor.shape[i] != 1)
    mode.give(call.results[0], Labels(axes, labels.constant))


def _expand(mode: Following, call: Call) -> None:
    tensor, result, labels = call.tensors[0], call.results[0], mode.labels(call.tensors[0])
    ahead = result.dim() - tensor.dim()
    mode.give(result, Labels(((),) * ahead + labels.axes, labels.constant))


def _repeat(mode: Following, call: Call) -> None:
    tensor, result, labels = call.tensors[0], call.results[0], mode.labels(call.tensors[0])
    ahead = result.dim() - tensor.dim()
    axes: list[Axis] = [()] * ahead
    for i, axis in enumerate(labels.axes):
        times = call.given["repeats"][ahead + i]
        axes.append(tuple(np.tile(factor, times) for factor in axis))
    mode.give(result, Labels(tuple(axes), labels.constant))


def _part(mode: Following, call: Call) -> None:
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


def _select(mode: Following, call: Call) -> None:
    """One place of an axis, or each by itself: which one is written in the code, and none of them can go."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dim = call.given["dim"] % tensor.dim()
    mode.fix(labels, "the network picks it by its number", [dim])
    for result in call.results:
        axes = tuple(axis for i, axis in enumerate(labels.axes) if i != dim)
        mode.give(result, Labels(axes, labels.constant))


def _cat(mode: Following, call: Call) -> None:
    """Axes one after the other."""
    result = call.results[0]
    parts = [t for t in call.given["tensors"] if t.dim() == result.dim()]
    every = [mode.labels(t) for t in parts]
    dim = call.given["dim"] % result.dim()
    axes: list[Axis] = []
    for i in range(result.dim()):
        if i == dim:
            axes.append(
                _joined(mode, [(labels.axes[i], t.shape[i]) for labels, t in zip(every, parts, strict=True)])
            )
            continue
        axis = every[0].axes[i]
        for labels in every[1:]:
            axis = united(mode.atoms, axis, labels.axes[i], result.shape[i], "it is joined with what stays")
        axes.append(axis)
    mode.give(result, Labels(tuple(axes), all(labels.constant for labels in every)))


def _joined(mode: Following, parts: Sequence[tuple[Axis, int]]) -> Axis:
    most = max(len(axis) for axis, _ in parts)
    factors = []
    for turn in range(most):
        factors.append(
            np.concatenate([axis[turn] if turn < len(axis) else stays(length) for axis, length in parts])
        )
    return axis_of(factors)


def _stack(mode: Following, call: Call) -> None:
    result = call.results[0]
    every = [mode.labels(t) for t in call.given["tensors"]]
    dim = call.given["dim"] % result.dim()
    axes = list(every[0].axes)
    for labels in every[1:]:
        for i, axis in enumerate(labels.axes):
            size = result.shape[i + (i >= dim)]
            axes[i] = united(mode.atoms, axes[i], axis, size, "it is joined with what stays")
    axes.insert(dim, ())
    mode.give(result, Labels(tuple(axes), all(labels.constant for labels in every)))


def _over(mode: Following, call: Call) -> None:
    """A function that puts all places of some axes together: a mean, a maximum, a softmax, a sort."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dims = _dims(call.given, tensor.dim())
    mode.fix(labels, f"the {_WORDS.get(call.name, call.name)} takes in all units", dims)
    for other in call.tensors[1:]:
        mode.fix(mode.labels(other), f"it goes through {call.name}")
    for result in call.results:
        if result.dim() == tensor.dim():
            axes = tuple(() if i in dims else axis for i, axis in enumerate(labels.axes))
        else:
            axes = tuple(axis for i, axis in enumerate(labels.axes) if i not in dims)
        mode.give(result, Labels(axes, labels.constant))


def _dims(given: Mapping[str, Any], dims: int) -> list[int]:
    found = given.get("dim")
    if found is None or (isinstance(found, Sequence) and not found):
        return list(range(dims))
    return [d % dims for d in (found if isinstance(found, Sequence) else [found])] if dims else []


def _pooled(mode: Following, call: Call) -> None:
    """Pooling, resizing and padding along the last axes: channels stay channels."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    count = _SPATIAL[call.name]
    spatial = range(tensor.dim() - count, tensor.dim())
    mode.fix(labels, "it is a position", spatial)
    for result in call.results:
        mode.give(result, Labels((*labels.axes[: tensor.dim() - count], *((),) * count)))


def _padded(mode: Following, call: Call) -> None:
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


def _copied(mode: Following, call: Call) -> None:
    """``self`` takes the values of ``src`` in place."""
    into, source = mode.labels(call.given["self"]), mode.labels(call.given["src"])
    ahead = len(into.axes) - len(source.axes)
    for i, axis in enumerate(source.axes):
        if call.given["src"].shape[i] == into_size(call, ahead + i):
            united(
                mode.atoms,
                into.axes[ahead + i],
                axis,
                call.given["src"].shape[i],
                "it is written over what stays",
            )
    if not source.constant:
        mode.give(call.given["self"], Labels(into.axes))


def into_size(call: Call, axis: int) -> int:
    """Return the size of an axis of what is written to."""
    return int(call.given["self"].shape[axis])


def _halves(mode: Following, call: Call) -> None:
    """``glu``: the first half times the sigmoid of the second."""
    tensor, labels = call.tensors[0], mode.labels(call.tensors[0])
    dim = call.given["dim"] % tensor.dim()
    half = tensor.shape[dim] // 2
    axes = list(labels.axes)
    first, second = ([f[part] for f in labels.axes[dim]] for part in (slice(half), slice(half, None)))
    axes[dim] = united(mode.atoms, axis_of(first), axis_of(second), half, "it is gated by what stays")
    mode.give(call.results[0], Labels(tuple(axes), labels.constant))


def _looked_up(mode: Following, call: Call) -> None:
    """An embedding: the inputs name its rows."""
    weight, result = call.given["weight"], call.results[0]
    labels = mode.labels(weight)
    mode.fix(labels, "the inputs name it", [0])
    mode.fix(mode.labels(call.given["indices"]), "it names rows of a table")
    mode.give(result, Labels((*((),) * (result.dim() - 1), *labels.axes[1:])))


def _channels(mode: Following, call: Call) -> None:
    """BatchNorm: a channel of the input, with its statistics, scale and shift."""
    tensor, labels = call.given["input"], mode.labels(call.given["input"])
    axis = labels.axes[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (other := call.given.get(name)) is not None:
            reason = "it is scaled together with what stays"
            axis = united(mode.atoms, axis, mode.labels(other).axes[0], tensor.shape[1], reason)
    mode.give(call.results[0], Labels((labels.axes[0], axis, *labels.axes[2:])))
    for extra in call.results[1:]:
        mode.give(extra, Labels.none(extra.dim()))
    sums.meet_norm(mode, call)


def _normalised(mode: Following, call: Call) -> None:
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


def _grouped_norm(mode: Following, call: Call) -> None:
    """GroupNorm: the channels of a group go together."""
    tensor, labels = call.given["input"], mode.labels(call.given["input"])
    groups, axis = call.given["group"], labels.axes[1]
    for name in ("weight", "bias"):
        if (other := call.given.get(name)) is not None:
            axis = united(
                mode.atoms, axis, mode.labels(other).axes[0], tensor.shape[1], "it is scaled with what stays"
            )
    for factor in axis:
        sums.one_per_group(mode.atoms, factor, groups, "the statistics of a GroupNorm take in all units")
    mode.give(call.results[0], Labels((labels.axes[0], axis, *labels.axes[2:])))
    for extra in call.results[1:]:
        mode.give(extra, Labels.none(extra.dim()))


def _each(names: str, handler: Handler) -> dict[str, Handler]:
    return dict.fromkeys(names.split(), handler)


_WORDS = {"mean": "mean", "sum": "sum", "_softmax": "softmax", "_log_softmax": "softmax", "amax": "maximum"}
_SPATIAL = {
    "max_pool1d": 1, "max_pool1d_with_indices": 1, "max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3,
    "max_pool2d": 2, "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "_adaptive_avg_pool2d": 2,
    "_adaptive_avg_pool3d": 3, "adaptive_max_pool1d": 1, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3,
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3, "upsample_linear1d": 1,
    "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_trilinear3d": 3, "reflection_pad1d": 1,
    "reflection_pad2d": 2, "reflection_pad3d": 3, "replication_pad1d": 1, "replication_pad2d": 2,
    "replication_pad3d": 3,
}  # fmt: skip
_HANDLERS: Mapping[str, Handler] = {
    **_each("_to_copy detach alias lift_fresh lift contiguous native_dropout dropout fill zero positive "
            "zeros_like ones_like full_like empty_like rand_like randn_like clone log_sigmoid_forward "
            "hardswish bernoulli", _same),
    **_each("_prelu_kernel masked_fill", _pointwise),
    **_each("zeros ones full empty arange eye linspace scalar_tensor new_zeros new_ones new_full new_empty rand randn "
            "randint tril_indices triu_indices", _made),
    **_each("view _unsafe_view reshape _reshape_alias", _view),
    **_each("t transpose permute", _ordered),
    **_each("slice split unsafe_split split_with_sizes unsafe_split_with_sizes narrow", _part),
    **_each("select unbind", _select),
    **_each("mean sum amax amin max min prod var std var_mean std_mean any all argmax argmin logsumexp norm "
            "linalg_vector_norm _softmax _log_softmax softmax log_softmax cumsum cumprod sort topk median "
            "_safe_softmax", _over),
    **dict.fromkeys(_SPATIAL, _pooled),
    **_each("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
            "_batch_norm_with_update _batch_norm_no_update", _channels),
    **_each("native_layer_norm _fused_rms_norm", _normalised),
    **_each("addmm mm bmm baddbmm", sums.product),
    "native_group_norm": _grouped_norm, "convolution": sums.convolution, "unsqueeze": _unsqueeze,
    "squeeze": _squeeze, "expand": _expand, "repeat": _repeat, "cat": _cat, "stack": _stack,
    "constant_pad_nd": _padded, "copy": _copied, "glu": _halves, "embedding": _looked_up,
}  # fmt: skip
