"""Seeing a forward pass as it happens: which layers are called on what, and which activation acts on their
units.

Torch functions are watched, not modules, so ``nn.ReLU``, ``F.relu``, ``x.relu_()`` and ``x.clamp(min=0)``
are one thing, and a layer that is called twice is seen twice. Fused recurrent and attention functions are done in
parts that can be seen. Nothing is registered on the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nndiag.replay import attention, recurrent
from nndiag.replay.by_tensor import ByTensor
from nndiag.replay.called import asks, plain_name
from nndiag.replay.kinds import BY_FUNCTION, Layer, Slot, Use
from nndiag.replay.layers import Owners
from nndiag.replay.lineage import Lineage
from nndiag.replay.linearity import LinearityProof, leaves, linear_in, tensors_in
from nndiag.replay.lookups import Taken, rows_taken
from nndiag.replay.nonlinearity import Nonlinearity, in_order, recognise
from nndiag.replay.normalising import batch_norm
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
    place later; ``use`` is ``None`` for what is only looked at, such as the states of recurrent units. ``dtype`` is
    that of the parameters, which the output need not have under autocast; ``rounding`` that of one step of what was
    computed, relative to it. ``fixed`` says that the data have no part in what it was called on, ``cut_off`` that no
    gradient can come back, as under ``no_grad``, and ``picked`` that the data say how many rows of each sample there
    are.
    ``activation`` is the nonlinearity that alone consumes the output; ``reading`` what the
    observer said of the units, where there are any. ``is_output`` says that no other layer works on what it put out.
    """

    layer: Layer
    use: Use | None
    edge: GradientEdge | None
    shape: torch.Size
    dtype: torch.dtype | None = None
    rounding: float = 0.0
    fixed: bool = False
    cut_off: bool = False
    picked: bool = False
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
        owners: the layer and slot of every parameter, by the identity of the parameter.
        observer: told of what layers produce and units put out.
        constants: the tensors that are the same for every sample: parameters and buffers.

    ``used_elsewhere`` names the layers with a parameter in a function that no kind knows or that cannot be seen,
    ``not_linear`` those in whose parameters the network is not known to be piecewise linear for that, or because they
    are used more than once. ``taken`` has the rows that functions no kind knows took of a layer's nodes, by its name,
    ``None`` where they took them all.
    """

    def __init__(self, owners: Owners, observer: Observer, constants: Collection[Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.proof = LinearityProof()
        self.used_elsewhere: set[str] = set()
        self.not_linear: set[str] = set()
        self.taken: dict[str, list[Taken] | None] = {}
        self._used: set[str] = set()
        self._layers_used: set[str] = set()
        self._owners = owners
        self._observer = observer
        self._dtypes = {owners[id(t)][1].parameter: t.dtype for t in constants if id(t) in owners}
        self._lineage = self._followed_from(constants)
        self._buffers = frozenset(
            map(_storage, (t for t in constants if not isinstance(t, nn.Parameter)))
        ) - {0}
        self._unrolling = False
        self._tags: ByTensor[tuple[Call, Units]] = ByTensor()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function and follow units through it."""
        if asks(func):
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if not args and isinstance(kwargs.get("input"), Tensor):
            args = (kwargs.pop("input"),)
        name, in_place = plain_name(func, args, kwargs)
        if name == "multi_head_attention_forward":
            return self._attend(func, args, kwargs)
        if (name in recurrent.STEPS or name in recurrent.CELLS) and self._owned(
            recurrent.weights_in(name, args)
        ):
            return self._unroll(func, name, args)
        use = self._use_of(name, args, kwargs)
        given = tensors_in((args, kwargs))
        self._look_for_unseen(given)
        func = batch_norm if func is F.batch_norm else func
        result = self._run(func, name, in_place, args, kwargs, given)
        if use is not None and isinstance(result, Tensor) and use.kind.fits(use, result):
            result = self._made(use.layer, _own_units(use, result), result, activated=False)
            call = self._enter(use, result)
            self._lineage.see(name, args, kwargs, result, call)
            self.calls[-1].picked = self._lineage.picked(result)
            self.calls[-1].fixed = all(map(self._lineage.fixed, given))
        else:
            self._lineage.see(name, args, kwargs, result, None)
            if any(t.requires_grad for t in tensors_in(result)):
                self._foreign(name, args, kwargs, given, result)
        self._prove(name, args, kwargs, result)
        return result

    def finish(self, output: Tensor) -> None:
        """Read the units that nothing consumed, say which calls no layer follows (the network's outputs), and find the
        parameters that ``output`` depends on by ways that no torch function showed.
        """
        self._look_for_unseen((output,))
        unused = {key for key, (_, slot) in self._owners.items() if slot.parameter not in self._used}
        for parameter in leaves(output) if unused else ():
            if id(parameter) in unused:
                owner, _ = self._owners[id(parameter)]
                self.used_elsewhere.add(owner.name)
                self.not_linear.add(owner.name)
                self.taken[owner.name] = None
        for index, call in enumerate(self.calls):
            if call.use is None:
                continue
            if not call.consumed and call.latest is not None:
                self._read(call, None, *call.latest)
            call.is_output = index not in self._lineage.followed
            call.close()

    def _followed_from(self, constants: Collection[Tensor]) -> Lineage:
        return Lineage(frozenset(map(id, constants)))

    def _prove(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object) -> None:
        self.proof.see(name, args, kwargs, result)

    def _run(
        self,
        func: Callable[..., Any],
        name: str,
        in_place: bool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Iterable[Tensor],
    ) -> Any:
        tagged = [t for t in given if t in self._tags]
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

    def _made(self, layer: Layer, units: Units | None, tensor: Tensor, *, activated: bool) -> Tensor:
        """Return what the model is given for a layer's output, or for its units behind their activation."""
        return tensor

    def _owned(self, tensors: Iterable[Tensor]) -> set[str]:
        """Return the layers that own any of these tensors."""
        return {self._owners[id(t)][0].name for t in tensors if id(t) in self._owners}

    def _use_of(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
        """Return the use of a layer's parameters that a call may be, if its kind fits."""
        kind = BY_FUNCTION.get(name)
        if kind is None:
            return None
        given = {**dict(zip(kind.functions[name], args, strict=False)), **kwargs}
        owner = self._owners.get(id(given.pop("weight", None)))
        if owner is None or owner[1] not in owner[0].weights:
            return None
        layer, slot = owner
        bias = self._owners.get(id(given.get("bias")))
        if bias is not None:
            if bias[0] is not layer or bias[1] not in layer.biases:
                return None
            del given["bias"]
        if any(_wrapped(v) or id(v) in self._owners for v in given.values()):
            return None  # a sample of a vmap, of which nothing may be kept; a parameter that has no part in this use
        inputs = {n: self._kept(v) for n, v in given.items() if isinstance(v, Tensor)}
        options = {n: v for n, v in given.items() if v is not None and not isinstance(v, Tensor)}
        return Use(kind, layer, slot, None if bias is None else bias[1], inputs, options)

    def _foreign(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Iterable[Tensor],
        result: object = None,
    ) -> None:
        """Take note of parameters in a function that no kind knows.

        One that gives the parameter itself back, such as a conversion to the type that it has, does nothing with it.
        """
        for tensor in given:
            owner = self._owners.get(id(tensor))
            if owner is None or tensor is result:
                continue
            self.used_elsewhere.add(owner[0].name)
            rows = rows_taken(name, args, kwargs, tensor)
            self._take(*owner, rows, all(self._lineage.fixed(t) for t in given))
            self._count(*owner)
            if not linear_in(name, args, kwargs, tensor):
                self.not_linear.add(owner[0].name)

    def _take(self, layer: Layer, slot: Slot, rows: Tensor | None, fixed: bool) -> None:
        """Take note of the rows of a parameter that were taken, if these are nodes."""
        before = self.taken.get(layer.name, [])
        if rows is None or before is None or not slot.in_order or layer.nodes != slot.shape[0]:
            self.taken[layer.name] = None
        else:
            self.taken[layer.name] = [*before, Taken(rows, fixed)]

    def _count(self, layer: Layer, *slots: Slot | None) -> None:
        """Take note of a use of some of a layer's parameters: in two of them one may multiply the other."""
        if layer.name in self._layers_used:
            self.not_linear.add(layer.name)
        self._layers_used.add(layer.name)
        self._used.update(slot.parameter for slot in slots if slot is not None)

    def _look_for_unseen(self, given: Iterable[Tensor]) -> None:
        """Take what no torch function made, such as the result of a scripted one, for smooth."""
        for tensor in given:
            if tensor.requires_grad and not tensor.is_leaf and not self._lineage.known(tensor):
                self.proof.smooth.add("what cannot be seen")

    def _kept(self, value: Tensor) -> Tensor:
        """Return what a use may keep of a tensor: a copy, where it is a buffer that another batch overwrites."""
        return value.detach().clone() if _storage(value) in self._buffers else value.detach()

    def _enter(self, use: Use, output: Tensor) -> int | None:
        """Take note of a layer's output, whose units, where it has any, are followed from here on.

        Returns the place of the call, or ``None`` where the units are still those of a layer before.
        """
        call = self._call(use, output)
        self.calls.append(call)
        self._count(use.layer, use.weight, use.bias)
        own = use.weight.outer * use.weight.inner
        if self._unrolling and len(use.layer.weights) > 1:  # a part of what the units put out: the states
            return len(self.calls) - 1
        units = _own_units(use, output)
        if units is None:
            return len(self.calls) - 1 if own > 1 or output not in self._tags else None
        if not output.numel():  # an expert that was sent no sample
            return len(self.calls) - 1
        with torch.no_grad():
            call.produced = self._observer.produced(use.layer, units.split(output))
        self._tag(output, call, units)
        return len(self.calls) - 1

    def _call(self, use: Use, output: Tensor) -> Call:
        dtype = self._dtypes[use.weight.parameter]
        use = _converted(use, output.dtype, dtype)
        rounding = max(torch.finfo(kind).eps for kind in (output.dtype, dtype))
        return Call(use.layer, use, _edge(output), output.shape, dtype, rounding, not output.requires_grad)

    def _attend(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Project, attend and project back, each seen by itself."""
        given = attention.arguments(args, kwargs)
        with self:
            parts = attention.projected(given)
        attended, *rest = attention.attend(func, given, parts)
        self._lineage.see("attention", parts, {}, attended, None)
        self._prove("attention", parts, {}, attended)
        more = (given["bias_k"], given["bias_v"])
        self._foreign("attention", more, {}, tensors_in(more))
        with self:
            output = F.linear(attended, given["out_proj_weight"], given["out_proj_bias"])
        return (output, *rest)

    def _unroll(self, _whole: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        """Run a recurrent layer step by step, and read the states of its units."""
        unroll = recurrent.unroll_cell if name in recurrent.CELLS else recurrent.unroll
        self._unrolling = True
        try:
            with self:
                found = unroll(name, args)
        finally:
            self._unrolling = False
        self._see_states(found.hidden)
        return found.result

    def _see_states(self, hidden: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Read the hidden states, ``(steps, batch, hidden)``, of the layers to which the weights beside them belong."""
        for weight, states in hidden:
            layer, _ = self._owners[id(weight)]
            split = states.detach().permute(1, 2, 0)
            if split.shape[1] != layer.nodes:  # projected: the units themselves are not seen
                continue
            call = Call(layer, None, None, states.shape, consumed=True)
            with torch.no_grad():
                call.produced = self._observer.produced(layer, split)
                call.reading = self._observer.put_out(layer, None, split, split)
            self.calls.append(call)

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
        result = self._made(call.layer, units, result, activated=True)
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


def _converted(use: Use, output: torch.dtype, own: torch.dtype) -> Use:
    """Return a use with inputs of the parameters' type, rounded to the type in which the function worked."""
    given = {n: v for n, v in use.inputs.items() if v.is_floating_point() and not v.dtype == output == own}
    if not given:
        return use
    rounded = {n: (v.to(output) if n == "input" else v).to(own) for n, v in given.items()}
    return replace(use, inputs={**use.inputs, **rounded})


def _own_units(use: Use, output: Tensor) -> Units | None:
    """Return where a layer's nodes lie in its output, ``None`` where its entries are not the nodes' own."""
    own = use.weight.outer * use.weight.inner
    return use.kind.units(output, use.layer) if own == 1 else None


def _storage(tensor: Tensor) -> int:
    """Return where a tensor's entries lie, 0 where it has none of its own."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _wrapped(value: object) -> bool:
    """Whether a value is a tensor of one sample of a ``vmap``, of which nothing may be kept."""
    return isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


def _edge(output: Tensor) -> GradientEdge:
    """Return where the gradient at a tensor is taken: nowhere that gradients come by, where it has none."""
    if not output.requires_grad:  # under no_grad
        output = torch.zeros((), device=output.device, requires_grad=True)
    return get_gradient_edge(output)


def _again(call: Call, activation: Nonlinearity, argument: Tensor) -> bool:
    """Whether the activation read before is called once more on the same tensor."""
    same = call.activation is not None and call.activation.name == activation.name
    return same and call.argument is not None and call.argument() is argument
