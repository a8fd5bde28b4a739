"""Seeing a forward pass as it happens: which layers are called on what, and which activation acts on their
units.

Torch functions are watched, not modules, so ``nn.ReLU``, ``F.relu``, ``x.relu_()`` and ``x.clamp(min=0)``
are one thing, and a layer that is called twice is seen twice. Nothing is registered on the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nndiag.replay.called import plain_name
from nndiag.replay.kinds.base import Layer, Use
from nndiag.replay.lineage import Lineage
from nndiag.replay.linearity import LinearityProof, tensors_in
from nndiag.replay.nonlinearity import Nonlinearity, in_order, recognise
from nndiag.replay.units import AFFINE, Units, moved

_NO_VALUES = frozenset(
    "detach __get__ zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full "
    "new_empty".split()
)
"""Functions whose result no gradient comes back from: they are no use of the units."""


class Observer(Protocol):
    """What is told of the units while their values exist.

    All tensors are ``(batch, units, rest)``.
    """

    def produced(self, layer: Layer, z: Tensor) -> object:
        """Look at a layer's output; the result is kept in ``Call.produced``."""

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> object:
        """Look at what the units put out: ``y = φ(z)``, or ``y = z`` where no activation acts on them."""


@dataclass(eq=False)
class Call:
    """One use of a layer in a forward pass.

    ``edge`` is where the gradient with respect to the layer's output is taken, whatever is done to it in
    place later. ``activation`` is the nonlinearity that alone consumes the output; ``reading`` what the
    observer said of the units. ``is_output`` says that no other layer works on what it put out.
    """

    layer: Layer
    use: Use
    edge: GradientEdge
    units: Units
    positions: int
    shape: torch.Size
    produced: object = None
    activation: Nonlinearity | None = None
    reading: object = None
    consumed: bool = False
    is_output: bool = False
    latest: tuple[Tensor, Units] | None = field(default=None, repr=False)
    argument: weakref.ref[Tensor] | None = field(default=None, repr=False)

    def close(self) -> None:
        """Forget the last tensor seen; nothing more is read."""
        self.latest = None


class Watch(TorchFunctionMode):
    """A mode under which one forward pass is run.

    Args:
        layers: the layer of every weight, by the identity of the parameter.
        observer: told of what layers produce and units put out.
        constants: identities of the tensors that are the same for every sample: parameters and buffers.
    """

    def __init__(self, layers: Mapping[int, Layer], observer: Observer, constants: frozenset[int]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.proof = LinearityProof()
        self.used_elsewhere: set[str] = set()
        self._layers = layers
        self._functions = frozenset(f for layer in layers.values() for f in layer.kind.functions)
        self._observer = observer
        self._lineage = Lineage(constants)
        self._tags = WeakTensorKeyDictionary()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function and follow units through it."""
        kwargs = dict(kwargs or {})
        if not args and isinstance(kwargs.get("input"), Tensor):
            args = (kwargs.pop("input"),)
        name, in_place = plain_name(func, args, kwargs)
        layer = self._layer_of(name, args, kwargs)
        result = self._run(func, name, in_place, args, kwargs)
        if layer is not None and isinstance(result, Tensor):
            self._enter(layer, args, kwargs, result)
            self._lineage.see(name, args, kwargs, result, len(self.calls) - 1)
        else:
            self._lineage.see(name, args, kwargs, result, None)
            used = [self._layers[id(t)].name for t in tensors_in((args, kwargs)) if id(t) in self._layers]
            if used:
                self.proof.foreign(name, result)
            if any(t.requires_grad for t in tensors_in(result)):
                self.used_elsewhere.update(used)
        self.proof.see(name, args, kwargs, result)
        return result

    def finish(self) -> None:
        """Read the units that nothing consumed, and say which calls no layer follows: the network's outputs."""
        for index, call in enumerate(self.calls):
            if not call.consumed and call.latest is not None:
                self._read(call, None, *call.latest)
            call.is_output = index not in self._lineage.followed
            call.close()

    def _run(
        self,
        func: Callable[..., Any],
        name: str,
        in_place: bool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        tagged = [t for t in tensors_in((args, kwargs)) if t in self._tags]
        if not tagged:
            return func(*args, **kwargs)
        ordered = in_order(name, args, tagged[0])
        activation = recognise(name, ordered, kwargs) if ordered and ordered[0] is tagged[0] else None
        before = tagged[0].shape
        if activation is not None and len(tagged) == 1:
            return self._activate(func, activation, in_place, args, kwargs, tagged[0])
        if in_place and self._follow(name, args, kwargs, tagged, before, before) is None:
            self._escape(tagged)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor | tuple | list):
            self._pass_on(name, args, kwargs, tagged, before, result)
        return result

    def _layer_of(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layer | None:
        if name not in self._functions:
            return None
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        return self._layers.get(id(weight))

    def _enter(self, layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        """Take note of a layer's output, whose units are followed from here on."""
        source = args[0] if args else kwargs["input"]
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        units = layer.kind.units(output, layer)
        options = {name: value for name, value in kwargs.items() if not isinstance(value, Tensor)}
        use = Use(source.detach(), (None, None, None, *args[3:]), options, tuple(weight.shape))
        positions = layer.kind.positions(output, layer)
        call = Call(layer, use, _edge(output), units, positions, output.shape)
        with torch.no_grad():
            call.produced = self._observer.produced(layer, units.split(output))
        self.calls.append(call)
        self._tag(output, call, units)

    def _tag(self, tensor: Tensor, call: Call, units: Units) -> None:
        self._tags[tensor] = (call, units)
        if not call.consumed:
            call.latest = (tensor, units)

    def _activate(
        self,
        func: Callable[..., Any],
        activation: Nonlinearity,
        in_place: bool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        argument: Tensor,
    ) -> Any:
        call, units = self._tags[argument]
        z = argument.detach().clone() if in_place else argument
        result = func(*args, **kwargs)
        if in_place:
            del self._tags[argument]
        if not call.consumed:
            self._read(call, activation, z, units, result)
            call.argument = weakref.ref(argument)
        elif call.activation is not None and not _again(call, activation, argument):
            self._read(call, None, z, units)  # units that are used in two ways are flat in neither alone
        return result

    def _pass_on(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tagged: list[Tensor],
        before: tuple[int, ...],
        result: object,
    ) -> None:
        outputs = [t for t in tensors_in(result) if t.is_floating_point()]
        if not outputs or name in _NO_VALUES:
            return
        after = self._follow(name, args, kwargs, tagged, before, outputs[0].shape)
        if after is None:
            self._escape(tagged)
        else:
            self._tag(outputs[0], *after)

    def _follow(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tagged: list[Tensor],
        before: tuple[int, ...],
        after: tuple[int, ...],
    ) -> tuple[Call, Units] | None:
        """Return the call and the new place of its units where a function keeps them apart."""
        if len(tagged) != 1:
            return None
        if name in AFFINE and not all(
            self._lineage.constant(t) for t in tensors_in((args, kwargs)) if t is not tagged[0]
        ):
            return None
        if name not in AFFINE and not (args and args[0] is tagged[0]):
            return None
        call, units = self._tags[tagged[0]]
        place = moved(name, units, before, after, args, kwargs)
        return None if place is None else (call, place)

    def _escape(self, tagged: list[Tensor]) -> None:
        """Units went into something that is neither an activation nor keeps them apart."""
        for tensor in tagged:
            call, units = self._tags[tensor]
            if not call.consumed or call.activation is not None:
                self._read(call, None, tensor, units)

    def _read(
        self, call: Call, activation: Nonlinearity | None, z: Tensor, units: Units, y: Tensor | None = None
    ) -> None:
        with torch.no_grad():
            split = units.split(z.detach())
            out = split if y is None else units.split(y.detach())
            call.reading = self._observer.put_out(call.layer, activation, split, out)
        call.activation = activation
        call.consumed = True
        call.close()


def _edge(output: Tensor) -> GradientEdge:
    """Return where the gradient at a tensor is taken: nowhere that gradients come by, where it has none."""
    if not output.requires_grad:  # under no_grad
        output = torch.zeros((), device=output.device, requires_grad=True)
    return get_gradient_edge(output)


def _again(call: Call, activation: Nonlinearity, argument: Tensor) -> bool:
    """Whether the activation read before is called once more on the same tensor."""
    same = call.activation is not None and call.activation.name == activation.name
    return same and call.argument is not None and call.argument() is argument
