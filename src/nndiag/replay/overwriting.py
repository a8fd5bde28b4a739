"""What a model overwrites as it runs: the inputs that it is given, and its own parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def nothing_overwritten(model: nn.Module) -> Iterator[None]:
    """Keep the inputs of a model as they are, and put back the numbers of parameters that it changes itself.

    The first pass shows which those are: it works on copies of the inputs (``x.sub_(mean)``), as all passes after it do
    where it changed them, and parameters are compared with what they were before (a weight that is clipped).

    Args:
        model: whose calls are watched.
    """
    guard = _Guard(model)
    hooks = [model.register_forward_pre_hook(guard.before), model.register_forward_hook(guard.after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        guard.restore()


class _Guard:
    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copies: bool | None = None  # not known before the first pass
        self._versions: tuple[int, ...] = ()
        self._before: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def before(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give copies, where they are needed or it is not known whether they are."""
        if self._copies is False:
            return inputs
        inputs = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
        if self._copies is None:
            self._versions = _versions(inputs)
            self._before = [(p, p.data, p.detach().clone()) for p in self._model.parameters()]
        return inputs

    def after(self, _: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        """See what the first pass changed."""
        if self._copies is None:
            self._copies = _versions(inputs) != self._versions
            self._before = [one for one in self._before if _changed(*one)]

    def restore(self) -> None:
        """Put changed parameters back."""
        for parameter, data, values in self._before:
            data.copy_(values)
            parameter.data = data


def _versions(inputs: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(x._version for x in inputs if isinstance(x, Tensor))


def _changed(parameter: nn.Parameter, data: Tensor, values: Tensor) -> bool:
    same_place = parameter.data_ptr() == data.data_ptr()
    return not same_place or not torch.equal(torch.nan_to_num(parameter.detach()), torch.nan_to_num(values))
