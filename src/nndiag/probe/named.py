"""Arrays by the names of a probe: ``x`` or ``x0, x1, …`` for the inputs, ``y`` for the targets; or inputs by the names
under which the model takes them, such as ``input_ids`` and ``attention_mask``, with ``labels``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nndiag.errors import InputError
from nndiag.probe.takes import NOTHING_KNOWN, Takes

INPUT = re.compile(r"x(0|[1-9][0-9]{0,3})")
TARGETS = ("y", "labels", "label")
_MASK = "attention_mask"
_MEASURED = re.compile(r"values|features|pixel")
"""Inputs that are quantities; integers under any other name are tokens, masks or positions."""


@dataclass(frozen=True)
class Named:
    """``tensors`` by name, the inputs in order and ``y`` last; ``left_out`` lists the arrays that no name
    claims. ``names`` are those under which the model takes the inputs, none where it takes them by position.
    ``mask`` is 0 where tokens are padding, also of a model that takes no mask.
    """

    tensors: Mapping[str, Tensor]
    left_out: str = ""
    names: tuple[str, ...] = ()
    mask: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The model's inputs."""
        return tuple(tensor for name, tensor in self.tensors.items() if name != "y")

    @property
    def targets(self) -> Tensor | None:
        """The loss's targets."""
        return self.tensors.get("y")


def wanted_names(names: Iterable[str], source: str, takes: Takes) -> tuple[list[str], list[str], bool]:
    """Return the names of the inputs, those of the targets (one or none), and whether the model takes the inputs by
    these names.

    Raises:
        InputError: there is no input, or the numbered inputs have a gap or stand beside ``x``.
    """
    names = list(names)
    numbered = sorted(int(match[1]) for name in names if (match := INPUT.fullmatch(name)))
    targets = [name for name in TARGETS if name in names][:1]
    if "x" in names and numbered:
        raise InputError(source, f"holds both x and x{numbered[0]}", "save the inputs as x, or as x0, x1, …")
    if numbered != list(range(len(numbered))):
        there = ", ".join(f"x{number}" for number in numbered)
        raise InputError(source, f"holds {there}", "number the inputs from x0 without a gap")
    inputs = ["x"] if "x" in names else [f"x{number}" for number in numbered]
    if inputs:
        return inputs, targets, False
    taken = [name for name in takes.names if name in names and name not in targets]
    if not taken:
        known = f" (the model takes {listed(takes.names)})" if takes.names else ""
        do = "save the inputs as x, or give file.py:callable"
        if names:
            do = "give --model, whose inputs may have these names, or save the inputs as x"
        if takes.names:
            do = "name the inputs as the model does, or x"
        raise InputError(source, f"holds {listed(sorted(names)) or 'no arrays'}{known}", do)
    return taken, targets, True


def named_tensors(arrays: Mapping[str, object], source: str, takes: Takes = NOTHING_KNOWN) -> Named:
    """Return the probe among ``arrays``, each a tensor or numpy array; only those that are wanted are looked
    up.
    """
    inputs, targets, by_name = wanted_names(arrays, source, takes)
    tensors = {name: as_tensor(arrays[name], name, source) for name in inputs}
    if by_name:
        tensors = {name: _widened(name, tensor) for name, tensor in tensors.items()}
    for name in targets:
        tensors["y"] = as_tensor(arrays[name], name, source)
    used = {*inputs, *targets}
    mask = None
    if "input_ids" in inputs and _MASK in arrays:
        mask = as_tensor(arrays[_MASK], _MASK, source)
        used.add(_MASK)
    left_out = listed([name for name in arrays if name not in used])
    return Named(tensors, left_out, tuple(inputs) if by_name else (), mask)


def _widened(name: str, tensor: Tensor) -> Tensor:
    """Return tokens and masks, which are often saved as bytes, as the integers that models take."""
    kept = tensor.is_floating_point() or tensor.dtype in (torch.bool, torch.int64) or _MEASURED.search(name)
    return tensor if kept else tensor.long()


def as_tensor(value: object, name: str, source: str) -> Tensor:
    """Return a tensor on the CPU, without its history, sharing memory where it can.

    Raises:
        InputError: the value is no numeric array.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise InputError(source, f"is refused: {name} holds Python objects", "save plain numeric arrays")
        try:
            native = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
            return torch.from_numpy(native).contiguous()
        except (TypeError, ValueError) as error:
            raise InputError(
                source, f"{name} holds {value.dtype}", "save numbers that torch knows"
            ) from error
    raise InputError(source, f"{name} is of type {type(value).__name__}", "give a tensor or a numpy array")


def listed(names: Iterable[str]) -> str:
    """Return eight names, each of bounded length, then a count."""
    names = list(names)
    shown = [name if len(name) <= 60 else f"{name[:57]}..." for name in names[:8]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
