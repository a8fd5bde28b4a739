"""Following every unit through a forward pass to the weights that listen to it.

Units are followed through activations, pooling, reshaping, concatenation, stored statistics and whatever else works on
each of them by itself. Where they go into anything else, such as a sum with other units, they have escaped: no weight
is theirs alone from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nndiag.replay import attention, recurrent
from nndiag.replay.called import plain_name
from nndiag.replay.kinds import BY_FUNCTION, Layer, Slot
from nndiag.replay.kinds.convolution import Convolution
from nndiag.replay.kinds.linear import Linear, TransposedLinear
from nndiag.replay.kinds.norm import BatchNorm, InstanceNorm
from nndiag.replay.kinds.transposed import TransposedConvolution
from nndiag.replay.layers import Owners
from nndiag.replay.lineage import Lineage
from nndiag.replay.linearity import tensors_in
from nndiag.replay.passes import main_output
from nndiag.surgery.training.composite import Composite, through_attention, through_recurrent
from nndiag.surgery.training.outlets import Form, Norm, Outlet, Paths, Shared
from nndiag.surgery.training.strands import JOINS, PRODUCTS, Bundle, Strand, followed, joined

_NO_VALUES = frozenset(
    "detach __get__ zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full "
    "new_empty".split()
)


class Listener(Protocol):
    """What is told of inputs as they arrive at weights."""

    def arrived(self, weight: str, entries: Tensor) -> None:
        """Look at what a weight is applied to, ``(rows, entries)``, entries along the axis that outlets count."""


class Following(TorchFunctionMode):
    """A mode under which one forward pass is run.

    Args:
        owners: the layer and slot of every parameter, by the identity of the parameter.
        constants: the tensors that are the same for every sample: parameters and buffers.
        listener: told of inputs as they arrive.
    """

    def __init__(
        self, owners: Owners, constants: Collection[Tensor], listener: Listener | None = None
    ) -> None:
        super().__init__()
        self._owners = owners
        self._listener = listener
        self._lineage = Lineage(frozenset(map(id, constants)))
        self._bundles = WeakTensorKeyDictionary()
        self._outlets: dict[str, dict[Outlet, None]] = {}
        self._norms: dict[str, dict[Norm, None]] = {}
        self._escapes: dict[str, str] = {}
        self._outputs: set[str] = set()
        self._heard: dict[str, tuple[Strand, ...]] = {}
        self._sources: set[str] = set()
        self._shared: dict[str, tuple[Shared, ...]] = {}
        self._stacked = WeakTensorKeyDictionary()

    def paths(self, output: Tensor) -> dict[str, Paths]:
        """Return what became of the units of every layer that was seen; ``output`` is the network's."""
        self._outputs |= {strand.layer for bundle in self._held(output) for strand in bundle.strands}
        return {
            layer: Paths(
                outlets=tuple(self._outlets.get(layer, ())),
                norms=tuple(self._norms.get(layer, ())),
                escape=self._escapes.get(layer),
                is_output=layer in self._outputs,
                shared=self._shared.get(layer, ()),
            )
            for layer in sorted(self._sources)
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function and follow what it does to units."""
        kwargs = dict(kwargs or {})
        if not args and isinstance(kwargs.get("input"), Tensor):
            args = (kwargs.pop("input"),)
        name, _ = plain_name(func, args, kwargs)
        if name == "multi_head_attention_forward":
            return self._attend(func, args, kwargs)
        if name in recurrent.STEPS or name in recurrent.CELLS:
            return self._recur(func, name, args, kwargs)
        kind = BY_FUNCTION.get(name)
        given = {} if kind is None else dict(zip(kind.functions[name], args, strict=False)) | kwargs
        owner = self._owners.get(id(given.get("weight")))
        tagged = [t for t in tensors_in((args, kwargs)) if t in self._bundles]
        held = [(t, self._bundles[t]) for t in tagged]
        result = func(*args, **kwargs)
        self._lineage.see(name, args, kwargs, result, None)
        if kind is not None and owner is not None and isinstance(result, Tensor):
            self._layer(kind, name, owner, given, result)
        elif held:
            self._pass_on(name, args, kwargs, [(t, bundle) for t, bundle in held], result)
        for tensor in tensors_in((args, kwargs)):
            if tensor in self._stacked:
                self._unstack(name, args, tensor, result)
        return result

    def _held(self, tensor: Tensor) -> tuple[Bundle, ...]:
        """Return whose units a tensor holds."""
        if tensor in self._stacked:
            return tuple(self._stacked[tensor])
        return (self._bundles[tensor],) if tensor in self._bundles else ()

    def _recur(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Follow units through a recurrent layer, or a step of a cell."""
        result = func(*args, **kwargs)
        self._lineage.see(name, args, kwargs, result, None)
        weights = [t for t in tensors_in((args, kwargs)) if id(t) in self._owners]
        layers = {self._owners[id(t)][0].name for t in weights}
        known = [] if kwargs else recurrent.weights_in(name, args)
        if not known or not all(id(weight) in self._owners for weight in known):
            for tensor in tensors_in((args, kwargs)):
                self._escape_all(tensor, "packed sequences")
            self._sources |= layers
            self._escapes |= dict.fromkeys(layers, "it runs over packed sequences, which are not followed")
            return result
        for tensor in tensors_in(args[1]):
            if any(strand.layer not in layers for bundle in self._held(tensor) for strand in bundle.strands):
                self._escape_all(tensor, f"the first state of {min(layers)}")
        source = self._along_last(args[0], f"{name} of {min(layers)}")
        self._composite(through_recurrent(func, name, args, result, self._owners, source))
        return result

    def _attend(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Follow units through an attention of torch."""
        result = func(*args, **kwargs)
        self._lineage.see("attention", args, kwargs, result, None)
        given = attention.arguments(args, kwargs)
        projections = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight")
        weights = [given[one] for one in projections if isinstance(given[one], Tensor)]
        taken = (given["query"], given["key"], given["value"])
        owned = all(id(weight) in self._owners for weight in weights)
        alone = taken[0] is taken[1] is taken[2] and not given["use_separate_proj_weight"] and owned
        source = self._along_last(taken[0], "an attention") if alone else None
        for tensor in () if alone else taken:
            self._escape_all(tensor, "an attention")
        if owned:
            wanted = self._listener is not None
            self._composite(through_attention(func, given, result, self._owners, source, wanted))
        return result

    def _along_last(self, tensor: Tensor, where: str) -> Bundle | None:
        """Return the bundle of a tensor if it lies along the last axis; else its units have escaped."""
        bundle = self._bundles.get(tensor)  # type: ignore[no-untyped-call]
        if tensor in self._stacked or (bundle is not None and bundle.axis != tensor.dim() - 1):
            self._escape_all(tensor, where)
            return None
        return bundle  # type: ignore[no-any-return]

    def _escape_all(self, tensor: Tensor, where: str) -> None:
        for bundle in self._held(tensor):
            self._escaped(bundle, where)

    def _composite(self, found: Composite) -> None:
        """Take note of the weights inside of a call, and of whose units its results are."""
        for part in found.parts:
            layer, slot = self._owners[id(part.weight)]
            if part.bundle is not None:
                self._hear(part.bundle, layer, slot, self._owners.get(id(part.bias)), "rows", {})
            if self._listener is not None:
                self._listener.arrived(slot.parameter, part.entries.detach().flatten(0, -2))
        self._sources |= set(found.sources)
        self._escapes |= {**(found.reasons or {}), **self._escapes}
        self._shared |= found.shared or {}
        for tensor, bundle in found.made:
            self._bundles[tensor] = bundle
        for tensor, bundles in found.stacked:
            self._stacked[tensor] = bundles

    def _unstack(self, name: str, args: tuple[Any, ...], tensor: Tensor, result: object) -> None:
        """Follow a choice of one of the states that several layers end with; after anything else all have escaped."""
        bundles = self._stacked[tensor]
        if name == "unbind" and isinstance(result, tuple | list) and len(result) == len(bundles):
            for one, bundle in zip(result, bundles, strict=True):
                self._bundles[one] = bundle
            return
        index = _first_index(name, args) if args and args[0] is tensor else None
        if index is None or not isinstance(result, Tensor):
            if tensors_in(result) and name not in _NO_VALUES:
                self._escape_all(tensor, name.strip("_"))
            return
        self._bundles[result] = bundles[index]

    def _layer(
        self, kind: object, name: str, owner: tuple[Layer, Slot], given: Mapping[str, Any], result: Tensor
    ) -> None:
        """Take note of a layer at work: whom it hears, and where its own units are."""
        layer, slot = owner
        source = given.get("input")
        bundle = self._bundles[source] if isinstance(source, Tensor) and source in self._bundles else None
        if isinstance(kind, BatchNorm | InstanceNorm):
            if self._listener is not None and isinstance(source, Tensor):
                self._listener.arrived(slot.parameter, source.detach().movedim(1, -1).flatten(0, -2))
            if bundle is not None:
                for strand in bundle.strands:
                    norm = Norm(layer.name, slot.parameter, strand.start, strand.inner, not strand.activated)
                    self._norms.setdefault(strand.layer, {})[norm] = None
                self._bundles[result] = bundle
            return
        form = _form(kind, slot)
        bias = self._owners.get(id(given.get("bias")))
        if bundle is not None:
            if form is None or not _fits(form, bundle, source):
                self._escaped(bundle, f"{name} of {layer.name}")
            else:
                self._hear(bundle, layer, slot, bias, form, given)
        if form is not None and isinstance(source, Tensor) and self._listener is not None:
            axis = 1 if form in ("kernels", "transposed") else source.dim() - 1
            self._listener.arrived(slot.parameter, source.detach().movedim(axis, -1).flatten(0, -2))
        self._begin(kind, layer, slot, result)

    def _hear(
        self, bundle: Bundle, layer: Layer, slot: Slot, bias: tuple[Layer, Slot] | None, form: Form,
        given: Mapping[str, Any],
    ) -> None:  # fmt: skip
        plain = tuple(Strand(s.layer, s.units, s.start, s.inner) for s in bundle.strands)
        known = self._heard.setdefault(slot.parameter, plain)
        if known != plain:
            for strand in {*known, *plain}:
                self._escapes[strand.layer] = _through(f"{layer.name}, which hears other units too")
            return
        kernel = slot.shape[2:]
        padding = given.get("padding", 0)
        padded = form == "transposed" and any(size > 1 for size in kernel)
        padded |= form == "kernels" and (isinstance(padding, str) or any(_numbers(padding)))
        for strand in plain:
            outlet = Outlet(
                layer.name, slot.parameter, None if bias is None else bias[1].parameter, form, strand.start,
                strand.inner, layer.groups if form in ("kernels", "transposed") else 1, padded,
            )  # fmt: skip
            self._outlets.setdefault(strand.layer, {})[outlet] = None

    def _begin(self, kind: object, layer: Layer, slot: Slot, result: Tensor) -> None:
        """Follow a layer's own units from here on."""
        if slot.outer * slot.inner > 1 or not hasattr(kind, "units"):
            return
        units = kind.units(result, layer)
        if units is not None and units.inner == 1 and slot in layer.weights:
            self._sources.add(layer.name)
            strand = Strand(layer.name, units.count)
            self._bundles[result] = Bundle(units.axis, units.count, (strand,))

    def _pass_on(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        held: list[tuple[Tensor, Bundle]],
        result: object,
    ) -> None:
        made = [t for t in tensors_in(result) if t.is_floating_point()]
        if not made or name in _NO_VALUES:
            return
        after = (
            self._after(name, args, kwargs, held, made[0])
            if isinstance(result, Tensor) or len(made) == 1
            else None
        )
        if after is None:
            for _, bundle in held:
                self._escaped(bundle, name.strip("_"))
            if made[0] in self._bundles:
                del self._bundles[made[0]]
        else:
            self._bundles[made[0]] = after

    def _after(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        held: list[tuple[Tensor, Bundle]],
        result: Tensor,
    ) -> Bundle | None:
        if name in JOINS:
            parts = tensors_in(args[0])
            axis = int(kwargs.get("dim", args[1] if len(args) > 1 else 0)) % result.dim()
            known = {id(t): bundle for t, bundle in held}
            return joined([(t, known.get(id(t))) for t in parts], axis)
        if len(held) > 1:
            first = held[0][1]
            alike = all(bundle.axis == first.axis and t.shape == result.shape for t, bundle in held)
            if name not in PRODUCTS or not alike:
                return None
            strands = dict.fromkeys(strand for _, bundle in held for strand in bundle.strands)
            return Bundle(first.axis, first.length, tuple(strands))
        tensor, bundle = held[0]
        others = [t for t in tensors_in((args, kwargs)) if t is not tensor]
        constant = all(map(self._lineage.constant, others))
        return followed(name, args, kwargs, tensor, bundle, result, constant)

    def _escaped(self, bundle: Bundle, where: str) -> None:
        for strand in bundle.strands:
            self._escapes.setdefault(strand.layer, _through(where))


def find_paths(model: nn.Module, inputs: tuple[Tensor, ...], owners: Owners) -> dict[str, Paths]:
    """Return what becomes of the units of every layer when the model runs on some samples.

    Args:
        model: in eval mode.
        inputs: of a few samples, ``(batch, ...)`` each.
        owners: the layer and slot of every parameter.
    """
    mode = Following(owners, tuple(chain(model.parameters(), model.buffers())))
    with torch.no_grad(), mode:
        output = main_output(model(*inputs))
    return mode.paths(output)


def _form(kind: object, slot: Slot) -> Form | None:
    if isinstance(kind, TransposedLinear):
        return "columns" if slot.units == (1,) and len(slot.shape) == 2 else None
    if isinstance(kind, Linear):
        return "rows" if slot.along_first and len(slot.shape) == 2 else None
    if isinstance(kind, Convolution):
        return "kernels"
    return "transposed" if isinstance(kind, TransposedConvolution) else None


def _fits(form: Form, bundle: Bundle, source: object) -> bool:
    """Whether the units lie along the axis over which the weight sums."""
    assert isinstance(source, Tensor)
    if form in ("rows", "columns"):
        return bundle.axis == source.dim() - 1
    return bundle.axis == 1 and all(strand.inner == 1 for strand in bundle.strands)


def _through(where: str) -> str:
    return f"its output goes on through {where}, so that no outgoing weight is its own"


def _first_index(name: str, args: tuple[Any, ...]) -> int | None:
    """Return the number of the one row along the first axis that a function takes, if it takes one."""
    if name == "select" and len(args) == 3 and args[1] == 0:
        return int(args[2])
    if name != "__getitem__":
        return None
    first, *rest = args[1] if isinstance(args[1], tuple) else (args[1],)
    plain = all(isinstance(part, slice) and part == slice(None) for part in rest)
    return int(first) if isinstance(first, int) and plain else None


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, tuple | list) else (int(str(value)),)
