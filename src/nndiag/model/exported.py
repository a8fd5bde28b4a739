"""The network inside a ``.pt2`` archive of torch.export: a graph of operators, made into a module like any other.

An archive is code: whoever calls this has the user's word that it may run. The operators of the graph stay as they
are but for those whose arguments torch's own functions take in another order; those of training are put into eval
mode, which an exported module cannot do by itself; and modules that held a layer's weights become such layers again,
so that each is called what it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from nndiag.config.callables import reason, running
from nndiag.errors import ModelError
from nndiag.model.sequential import LAYERS

_DYNAMIC = "export it with a free batch: dynamic_shapes={'x': {0: torch.export.Dim('batch')}}"
_MODULES = "torch.nn.modules."


def load_exported(path: Path) -> nn.Module:
    """Return the network of an archive with its weights, in eval mode.

    Raises:
        ModelError: torch cannot load it, or it was exported for batches of one size alone.
    """
    what = str(path)
    with running(what, ModelError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(path)
        except Exception as error:  # the archive may hold anything
            why = f"torch {torch.__version__} cannot load the program in it ({reason(error)[:200]})"
            raise ModelError(what, why, "export it again with this version") from error
        _require_free_batch(what, program)
        return plain_module(program)


def plain_module(program: torch.export.ExportedProgram) -> nn.Module:
    """Return the module of an exported program, its graph put into eval mode and into functions that a replay knows."""
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    _restore_layers(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            _rewrite(node)
    module.recompile()
    for name in ("train", "eval"):  # what torch.export puts there raises
        vars(module).pop(name, None)
    return module.eval()


def _require_free_batch(what: str, program: torch.export.ExportedProgram) -> None:
    """Refuse a program of which the first axis of an input has one size only."""
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" and node.name in inputs else None
        if isinstance(value, torch.Tensor) and value.dim() and isinstance(value.shape[0], int):
            raise ModelError(what, f"its input {node.name} takes batches of {value.shape[0]} alone", _DYNAMIC)


def _rewrite(node: fx.Node) -> None:
    """Put an operator of a graph into eval mode, and call the function that a replay knows for it."""
    name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    if name in ("add_", "add") and _counts_batches(node):
        node.graph.erase_node(node)
        return
    reorder = _FUNCTIONS.get(name)
    if reorder is None:
        if name in _TRAINING:
            node.args = tuple(False if place == _TRAINING[name] else a for place, a in enumerate(node.args))
        return
    function, order = reorder
    given = _bound(node)
    node.target, node.kwargs = function, {}
    node.args = tuple(_argument(key, given) for key in order)


def _bound(node: fx.Node) -> Mapping[str, Any]:
    """Return the arguments of an operator by the names of its schema, defaults included."""
    found: dict[str, Any] = {}
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = (
            node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, default)
        )
    return found


def _argument(key: str, given: Mapping[str, Any]) -> Any:
    value = given[key]
    if key == "training":
        return given["running_mean"] is None
    if key == "use_input_stats":
        return given["running_mean"] is None or value
    if key == "padding_idx":  # the operator says -1 where there is none
        return None if value is None or value < 0 else value
    return value


def _counts_batches(node: fx.Node) -> bool:
    """Whether an addition counts the batches that a normalisation has seen, and nothing uses it."""
    first = node.args[0]
    return not node.users and isinstance(first, fx.Node) and str(first.target).endswith("num_batches_tracked")


def _restore_layers(module: fx.GraphModule) -> None:
    """Make modules that only hold the weights of a layer of torch that layer again."""
    for node in module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if node.op != "call_function" or not stack:
            continue
        path, kind = stack[-1]
        name = str(kind).rpartition(".")[2]
        if not str(kind).startswith(_MODULES) or name not in LAYERS:
            continue
        try:
            held = module.get_submodule(path)
        except AttributeError:  # it has no weights
            continue
        if path and type(held) is nn.Module and not held._modules and held._parameters:
            module.set_submodule(path, _as_layer(held, LAYERS[name], node))


def _as_layer(held: nn.Module, kind: type[nn.Module], node: fx.Node) -> nn.Module:
    """Return a layer of a kind that holds these parameters; it is never called, the graph calls its function."""
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    layer._parameters, layer._buffers = held._parameters, held._buffers
    layer._non_persistent_buffers_set = held._non_persistent_buffers_set
    named = {argument.name for argument in getattr(node.target, "_schema", _NO_SCHEMA).arguments}
    if "groups" in named:
        layer.groups = _bound(node)["groups"]
    layer.max_norm = None  # type: ignore[assignment]  # of embeddings
    return layer


class _NoSchema:
    arguments: Sequence[Any] = ()


_NO_SCHEMA = _NoSchema()
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_TRAINING = {
    "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2, "native_dropout": 2,
    "lstm": 6, "gru": 6, "rnn_tanh": 6, "rnn_relu": 6,
}  # fmt: skip
"""Operators that know whether the network trains, and the place of the argument that says so."""
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], Sequence[str]]] = {
    "linear": (F.linear, ("input", "weight", "bias")),
    **{f"conv{n}d": (getattr(F, f"conv{n}d"), _CONVOLUTION) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (getattr(F, f"conv_transpose{n}d"), _TRANSPOSED) for n in (1, 2, 3)},
    "embedding": (F.embedding, ("indices", "weight", "padding_idx")),
    "layer_norm": (F.layer_norm, ("input", "normalized_shape", "weight", "bias", "eps")),
    "rms_norm": (F.rms_norm, ("input", "normalized_shape", "weight", "eps")),
    "group_norm": (F.group_norm, ("input", "num_groups", "weight", "bias", "eps")),
    "batch_norm": (
        F.batch_norm,
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    "instance_norm": (
        F.instance_norm,
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    ),
}
"""Operators whose functions are called instead, with the names of the operator's arguments in the function's order."""
