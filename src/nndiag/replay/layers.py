"""Which layers a model has: found from its modules, before anything runs.

Modules whose parameters lie in an order of their own have a function here; all others own a weight whose first axis
counts nodes, with or without a bias, or raw parameters, each a layer by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from nndiag.replay.heads import Heads, heads_of
from nndiag.replay.kinds import Layer, Slot

Axes = Mapping[str, tuple[int, ...]]
Owners = Mapping[int, tuple[Layer, Slot]]
"""The layer and the slot of every parameter, by the identity of the parameter."""


def find_layers(
    model: nn.Module, granularity: str = "node", unit_axes: Axes | None = None
) -> tuple[Layer, ...]:
    """Return the layers in the order in which the model registers them; a shared parameter belongs to the first.

    Args:
        model: the model.
        granularity: ``"node"``, or ``"head"`` to take the rows of an attention head together.
        unit_axes: by the name of a raw parameter the axes that count its nodes, where that is known.
    """
    heads = heads_of(model) if granularity == "head" else {}
    found: dict[str, Layer] = {}
    owner_of: dict[int, str] = {}
    for path, module in model.named_modules():
        own = {name: p for name, p in module._parameters.items() if p is not None and p.is_floating_point()}
        first = {
            id(p): name for name, p in reversed(own.items())
        }  # a parameter may have two names in a module
        fresh = {name: p for name, p in own.items() if id(p) not in owner_of and first[id(p)] == name}
        for layer in _layers_of(_Module(path, module, fresh, heads.get(path), unit_axes or {})):
            if layer.nodes and all(slot.width for slot in layer.slots):
                found[layer.name] = layer
        owner_of |= {id(p): path for p in fresh.values()}
        _adopt_biases(found, path, own, fresh, owner_of)
    return tuple(found.values())


def owners(model: nn.Module, layers: Collection[Layer]) -> Owners:
    """Return the layer and slot of every parameter that belongs to one."""
    return owners_of(dict(model.named_parameters(remove_duplicate=False)), layers)


def owners_of(named: Mapping[str, Tensor], layers: Collection[Layer]) -> Owners:
    """Return the same from all parameters by name, also by the second names of shared ones."""
    return {id(named[slot.parameter]): (layer, slot) for layer in layers for slot in layer.slots}


@dataclass(frozen=True)
class _Module:
    """A module with those of its own parameters that no module before it has."""

    path: str
    module: nn.Module
    own: Mapping[str, Tensor]
    heads: Heads | None
    unit_axes: Axes

    def name(self, parameter: str) -> str:
        """Return a parameter's full name."""
        return f"{self.path}.{parameter}" if self.path else parameter

    def slot(self, parameter: str, nodes: int | None = None, outer: int = 1) -> Slot:
        """Return the slot of one of its parameters, nodes along the first axis."""
        return Slot.of(self.name(parameter), self.own[parameter], nodes, outer)

    def slots(self, *parameters: str, nodes: int | None = None, outer: int = 1) -> tuple[Slot, ...]:
        """Return the slots of those that are there."""
        return tuple(self.slot(p, nodes, outer) for p in parameters if p in self.own)


def _layers_of(m: _Module) -> Iterator[Layer]:
    rest = dict(m.own)
    describe = next((f for kind, f in _SPECIAL.items() if isinstance(m.module, kind)), _plain)
    for layer in describe(m):
        for slot in layer.slots:
            rest.pop(slot.parameter.removeprefix(f"{m.path}." if m.path else ""), None)
        yield layer
    for name in rest:
        yield _raw(m, name)


def _plain(m: _Module) -> Iterator[Layer]:
    """A weight whose first axis counts nodes, and a bias of as many entries, are one layer."""
    weight, bias = m.own.get("weight"), m.own.get("bias")
    label = type(m.module).__name__
    if weight is None or not weight.dim() or set(m.own) - {"weight", "bias"}:
        return
    if label == "Conv1D" and weight.dim() == 2 and hasattr(m.module, "nf"):  # GPT-2's: a node is a column
        yield _columns_of_weight(m, label, weight)
        return
    if _turned(m):
        if weight.dim() == 2 and m.unit_axes[m.name("weight")] == (1,):
            yield _columns_of_weight(m, label, weight)
        return
    nodes = m.heads.count if m.heads else weight.shape[0]
    outer = m.heads.outer if m.heads else 1
    biases = m.slots("bias", nodes=nodes, outer=outer) if _as_many(bias, weight.shape[:1]) else ()
    weights = m.slots("weight", nodes=nodes, outer=outer)
    groups = int(getattr(m.module, "groups", 1)) if isinstance(m.module, nn.modules.conv._ConvNd) else 1
    fan_in = max(1, math.prod(weight.shape[1:]))
    yield Layer(m.path, label, nodes, fan_in, weights, biases, groups)


def _turned(m: _Module) -> bool:
    """Whether another axis than the first counts nodes, as the use of the weight shows; torch's own are known."""
    own = type(m.module).__module__.partition(".")[0] != "torch"
    return own and m.unit_axes.get(m.name("weight"), (0,)) != (0,)


def _columns_of_weight(m: _Module, label: str, weight: Tensor) -> Layer:
    """A matrix that multiplies from the right."""
    fan_in, outputs = weight.shape
    name = m.name("weight")
    if m.heads:
        parts = (fan_in, m.heads.outer, m.heads.count, outputs // (m.heads.outer * m.heads.count))
        shape = tuple(weight.shape)
        slot = Slot(name, shape, parts, (2,), m.heads.outer, parts[3])
        # in a node's row: the outputs of a head first, then the inputs, as for a weight of rows
        slot = replace(slot, rest=(1, 3, 0))
        biases = m.slots("bias", nodes=m.heads.count, outer=m.heads.outer)
        return Layer(m.path, label, m.heads.count, fan_in, (slot,), biases)
    slot = Slot.of(name, weight, units=(1,))
    biases = m.slots("bias") if _as_many(m.own.get("bias"), (outputs,)) else ()
    return Layer(m.path, label, outputs, fan_in, (slot,), biases)


def _transposed(m: _Module) -> Iterator[Layer]:
    """The weight of a transposed convolution: inputs first, outputs second, group by group."""
    assert isinstance(m.module, nn.modules.conv._ConvTransposeNd)
    if "weight" not in m.own:
        return
    weight, groups = m.own["weight"], m.module.groups
    view = (groups, weight.shape[0] // groups, *weight.shape[1:])
    slot = Slot.of(m.name("weight"), weight, units=(0, 2), view=view)
    yield Layer(m.path, type(m.module).__name__, slot.nodes, slot.width, (slot,), m.slots("bias"), groups)


def _normalisation(m: _Module) -> Iterator[Layer]:
    """Scale and shift of every channel."""
    if "weight" not in m.own:
        return
    weight = m.own["weight"]
    nodes = weight.numel()
    view = (nodes,)
    slots = tuple(
        Slot.of(m.name(name), m.own[name], units=(0,), view=view)
        for name in ("weight", "bias")
        if name in m.own
    )
    yield Layer(m.path, type(m.module).__name__, nodes, 1, slots[:1], slots[1:], nodes)


def _recurrent(m: _Module) -> Iterator[Layer]:
    """A node is a hidden unit with its rows in every gate; a layer and direction each is a layer."""
    module = m.module
    assert isinstance(module, nn.RNNBase)
    whole = len(module._all_weights) == 1
    for names in module._all_weights:
        suffix = names[0].removeprefix("weight_ih_")
        name = m.path if whole else f"{m.path}.{suffix}".lstrip(".")
        yield from _gated(m, name, [n for n in names if not n.startswith("weight_hr")], module.hidden_size)


def _cell(m: _Module) -> Iterator[Layer]:
    """One step of a recurrent layer."""
    assert isinstance(m.module, nn.RNNCellBase)
    yield from _gated(m, m.path, ["weight_ih", "weight_hh", "bias_ih", "bias_hh"], m.module.hidden_size)


def _gated(m: _Module, name: str, parameters: list[str], hidden: int) -> Iterator[Layer]:
    present = [p for p in parameters if p in m.own]
    if not present:
        return
    gates = m.own[present[0]].shape[0] // hidden
    weights = m.slots(*(p for p in present if p.startswith("weight")), nodes=hidden, outer=gates)
    biases = m.slots(*(p for p in present if p.startswith("bias")), nodes=hidden, outer=gates)
    fan_in = sum(slot.width for slot in weights) // gates
    yield Layer(name, type(m.module).__name__, hidden, fan_in, weights, biases)


def _attention(m: _Module) -> Iterator[Layer]:
    """The projections of queries, keys and values, one above the other; or each by itself."""
    assert isinstance(m.module, nn.MultiheadAttention)
    count = m.module.num_heads if m.heads else None
    if "in_proj_weight" in m.own:
        nodes = count if count else m.own["in_proj_weight"].shape[0]
        outer = 3 if count else 1
        weights = m.slots("in_proj_weight", nodes=nodes, outer=outer)
        biases = m.slots("in_proj_bias", nodes=nodes, outer=outer)
        yield Layer(m.path, type(m.module).__name__, nodes, m.module.embed_dim, weights, biases)
    for part in ("q", "k", "v"):
        if f"{part}_proj_weight" in m.own:
            (slot,) = m.slots(f"{part}_proj_weight", nodes=count)
            fan_in = slot.shape[1]
            yield Layer(m.name(f"{part}_proj_weight"), "Linear", slot.nodes, fan_in, (slot,))


_SPECIAL: Mapping[type[nn.Module], Callable[[_Module], Iterator[Layer]]] = {
    nn.modules.conv._ConvTransposeNd: _transposed,
    nn.modules.batchnorm._NormBase: _normalisation,
    nn.LayerNorm: _normalisation,
    nn.GroupNorm: _normalisation,
    nn.RMSNorm: _normalisation,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
    nn.MultiheadAttention: _attention,
}


def _raw(m: _Module, name: str) -> Layer:
    """A parameter by itself: its nodes lie along the first axis that has more than one entry."""
    tensor = m.own[name]
    full = m.name(name)
    axis = next((i for i, size in enumerate(tensor.shape) if size > 1), 0)
    axes = m.unit_axes.get(full, (axis,))
    slot = Slot.of(full, tensor, units=axes, view=tuple(tensor.shape) or (1,))
    return Layer(full, "Parameter", slot.nodes, slot.width, (slot,))


def _adopt_biases(
    found: dict[str, Layer],
    path: str,
    own: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    owner_of: Mapping[int, str],
) -> None:
    """Give a new bias beside a weight that another module shares to the layer of that weight: they are one node's."""
    if set(own) != {"weight", "bias"} or set(fresh) != {"bias"}:
        return
    raw = f"{path}.bias" if path else "bias"
    layer, bias = found.get(owner_of[id(own["weight"])]), own["bias"]
    if layer is None or layer.biases or raw not in found or not _as_many(bias, (layer.nodes,)):
        return
    del found[raw]
    found[layer.name] = replace(layer, biases=(Slot.of(raw, bias),))


def _as_many(bias: Tensor | None, shape: tuple[int, ...]) -> bool:
    return bias is not None and tuple(bias.shape) == tuple(shape)


def unmeasured(model: nn.Module, layers: Collection[Layer]) -> tuple[tuple[str, str], ...]:
    """Return every parameter that belongs to no layer, with the reason."""
    known = owners(model, layers)
    return tuple((name, _why_not(p)) for name, p in model.named_parameters() if id(p) not in known)


def _why_not(parameter: Tensor) -> str:
    if not parameter.numel():
        return "it is empty"
    if parameter.is_floating_point():
        return "its layer has no weights"
    return f"its numbers are {str(parameter.dtype).removeprefix('torch.')}, not real"
