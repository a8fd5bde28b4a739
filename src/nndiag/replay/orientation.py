"""How raw parameters are used, to know which of their axes count nodes: those that the output of a product has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nndiag.replay.called import plain_name
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import find_layers

_PRODUCTS = frozenset("matmul __matmul__ mm bmm".split())


class Orientation(TorchFunctionMode):
    """A mode under which one forward pass is run.

    ``axes`` gives, by the identity of a parameter, those of its axes that count outputs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.axes: dict[int, tuple[int, ...]] = {}
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
        return func(*args, **dict(kwargs or {}))

    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at the parameters among the arguments of a function; the first product of each counts."""
        name, _ = plain_name(func, args, kwargs)
        given = list(chain(args, kwargs.values()))
        if name in _PRODUCTS:
            self._product([t for t in given if isinstance(t, Tensor)])
        elif name == "addmm" and len(given) > 2 and isinstance(given[2], Tensor):
            self._note(given[2], (1,))
        elif name == "einsum" and given and isinstance(given[0], str):
            self._einsum(given[0], given[1:])

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

    def _note(self, tensor: Tensor, axes: tuple[int, ...]) -> None:
        if id(tensor) in self._parameters and axes:
            self.axes.setdefault(id(tensor), axes)


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
