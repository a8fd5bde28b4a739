"""How raw parameters are used, to know which of their axes count nodes: those that the output of a product has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nndiag.replay.by_tensor import ByTensor
from nndiag.replay.called import plain_name
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import find_layers

_TURNS = frozenset("t mT transpose swapaxes swapdims permute".split())
_PRODUCTS = frozenset("matmul __matmul__ mm bmm".split())


class Orientation(TorchFunctionMode):
    """A mode under which one forward pass is run.

    ``axes`` gives, by the identity of a parameter, those of its axes that count outputs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.axes: dict[int, tuple[int, ...]] = {}
        self._turned: ByTensor[tuple[int, tuple[int, ...]]] = ByTensor()
        self._model = model
        self._parameters = frozenset(id(p) for p in model.parameters())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function and look at the parameters among its arguments."""
        self.see(func, args, kwargs or {})
        result = func(*args, **dict(kwargs or {}))
        self.follow(func, args, kwargs or {}, result)
        return result

    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at the parameters among the arguments of a function; the first product of each counts."""
        name, _ = plain_name(func, args, kwargs)
        given = list(chain(args, kwargs.values()))
        if name in _PRODUCTS:
            self._product([t for t in given if isinstance(t, Tensor)])
        elif name == "addmm" and len(given) > 2 and isinstance(given[2], Tensor):
            self._note(given[2], (1,))
        elif name == "linear" and len(given) > 1 and isinstance(given[1], Tensor):
            self._note(given[1], (0,))
        elif name == "tensordot":
            self._tensordot(given)
        elif name == "einsum" and given and isinstance(given[0], str):
            self._einsum(given[0], given[1:])

    def follow(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object
    ) -> None:
        """Follow a parameter whose axes a function gives another order."""
        name, _ = plain_name(func, args, kwargs)
        if name not in _TURNS or not isinstance(result, Tensor):
            return
        before, *given = (*args, *kwargs.values())
        known = self._known(before) if isinstance(before, Tensor) else None
        if known is None or result.dim() < 2 or (name == "t" and result.dim() > 2):
            return
        owner, order = known
        self._turned[result] = owner, tuple(order[place] for place in _reordered(name, given, result.dim()))

    def named(self) -> Mapping[str, tuple[int, ...]]:
        """Return ``axes`` by the name of the parameter."""
        return {name: self.axes[id(p)] for name, p in self._model.named_parameters() if id(p) in self.axes}

    def _product(self, operands: Sequence[Tensor]) -> None:
        for place, tensor in enumerate(operands[:2]):
            if tensor.dim() >= 2:
                summed = tensor.dim() - (1 if place == 0 else 2)
                self._note(tensor, tuple(axis for axis in range(tensor.dim()) if axis != summed))

    def _einsum(self, equation: str, operands: Sequence[Any]) -> None:
        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = operands[0]
        left, _, right = equation.replace(" ", "").partition("->")
        for letters, tensor in zip(left.split(","), operands, strict=False):
            if "." not in letters and isinstance(tensor, Tensor) and len(letters) == tensor.dim():
                self._note(tensor, tuple(axis for axis, letter in enumerate(letters) if letter in right))

    def _tensordot(self, given: Sequence[Any]) -> None:
        one, other, summed = given[0], given[1], given[2] if len(given) > 2 else 2
        if isinstance(summed, int):
            summed = (range(one.dim() - summed, one.dim()), range(summed))
        for tensor, gone in zip((one, other), summed, strict=True):
            left = {axis % tensor.dim() for axis in gone}
            self._note(tensor, tuple(axis for axis in range(tensor.dim()) if axis not in left))

    def _note(self, tensor: Tensor, axes: tuple[int, ...]) -> None:
        known = self._known(tensor)
        if known is not None and axes:
            owner, order = known
            self.axes.setdefault(owner, tuple(sorted(order[axis] for axis in axes)))

    def _known(self, tensor: Tensor) -> tuple[int, tuple[int, ...]] | None:
        """Return the identity of the parameter that a tensor shows, and which of its axes each of the tensor's is."""
        if id(tensor) in self._parameters:
            return id(tensor), tuple(range(tensor.dim()))
        return self._turned.get(tensor)


def _reordered(name: str, given: Sequence[Any], axes: int) -> list[int]:
    """Return the axes in the order that a function gives them."""
    if name == "permute":
        order = given[0] if isinstance(given[0], tuple | list | torch.Size) else given
        return [axis % axes for axis in order]
    places = list(range(axes))
    one, other = (-2, -1) if name == "mT" else (given[0], given[1]) if len(given) > 1 else (0, 1)
    places[one], places[other] = places[other], places[one]
    return places


def unit_axes(model: nn.Module, inputs: Sequence[Tensor]) -> Mapping[str, tuple[int, ...]]:
    """Return which axes of raw parameters count nodes, by name, from one forward pass of three samples.

    A model that fails says nothing here; the replay will say why.
    """
    seen = Orientation(model)
    try:
        with torch.no_grad(), seen:
            model(*(x[:3] for x in inputs))
    except (Exception, SystemExit):  # the user's code may raise anything
        return {}
    return seen.named()


def layers_in_use(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Layer, ...]:
    """Return the layers of a model, the nodes of raw parameters counted as a replay of these inputs counts them.

    Args:
        model: in the mode in which it is to be examined.
        inputs: positional arguments of the model, each ``(batch, ...)``; the code of the model may overwrite them.
    """
    return find_layers(model, unit_axes=unit_axes(model, inputs))
