"""What each function does to the atoms of its arguments; one that is not listed here fixes them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nndiag.surgery.deploying import norms, shaping, sums
from nndiag.surgery.deploying.labels import Axis, Labels, united

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
            axes[ahead + i] = axis if known is None else united(mode.atoms, known, axis, reason)
    given = Labels(tuple(axis or () for axis in axes), constant)
    for one in call.results:
        mode.give(one, given if one.shape == result.shape else Labels.none(one.dim()))
    sums.meet_bias(mode, call)


def _same(mode: Following, call: Call) -> None:
    """The first tensor's labels, for functions of its shape."""
    labels = mode.labels(call.tensors[0])
    drawn = "rand" in call.name or call.name == "bernoulli"
    for result in call.results:
        if result.shape == call.tensors[0].shape:
            mode.give(result, Labels(labels.axes, labels.constant and not drawn))
    sums.pass_on(mode, call)


def _made(mode: Following, call: Call) -> None:
    """A tensor that is made on the way: its places are new."""
    for result in call.results:
        axes = tuple((mode.atoms.fresh(size),) if size > 1 else () for size in result.shape)
        mode.give(result, Labels(axes, constant="rand" not in call.name))


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


def _copied(mode: Following, call: Call) -> None:
    """``self`` takes the values of ``src`` in place."""
    target, source = call.given["self"], call.given["src"]
    into, labels = mode.labels(target), mode.labels(source)
    ahead = target.dim() - source.dim()
    for i, axis in enumerate(labels.axes):
        if source.shape[i] == target.shape[ahead + i]:
            united(mode.atoms, into.axes[ahead + i], axis, "it is written over what stays")
    if not labels.constant:
        mode.give(target, Labels(into.axes))


def _looked_up(mode: Following, call: Call) -> None:
    """An embedding: the inputs name its rows."""
    weight, result = call.given["weight"], call.results[0]
    labels = mode.labels(weight)
    mode.fix(labels, "the inputs name it", [0])
    mode.fix(mode.labels(call.given["indices"]), "it names rows of a table")
    mode.give(result, Labels((*((),) * (result.dim() - 1), *labels.axes[1:])))


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
    **_each("view _unsafe_view reshape _reshape_alias", shaping.view),
    **_each("t transpose permute", shaping.ordered),
    **_each("slice split unsafe_split split_with_sizes unsafe_split_with_sizes narrow", shaping.part),
    **_each("select unbind", shaping.select),
    **_each("mean sum amax amin max min prod var std var_mean std_mean any all argmax argmin logsumexp norm "
            "linalg_vector_norm _softmax _log_softmax softmax log_softmax cumsum cumprod sort topk median "
            "_safe_softmax", _over),
    **dict.fromkeys(_SPATIAL, _pooled),
    **_each("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
            "_batch_norm_with_update _batch_norm_no_update", norms.channels),
    **_each("native_layer_norm _fused_rms_norm", norms.normalised),
    **_each("addmm mm bmm baddbmm", sums.product),
    "native_group_norm": norms.grouped_norm, "convolution": sums.convolution, "unsqueeze": shaping.unsqueeze,
    "squeeze": shaping.squeeze, "expand": shaping.expand, "repeat": shaping.repeat, "cat": shaping.cat,
    "stack": shaping.stack, "constant_pad_nd": shaping.padded, "copy": _copied, "glu": shaping.halves,
    "embedding": _looked_up,
}  # fmt: skip
