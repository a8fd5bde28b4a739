"""Arrays by the names of a probe: ``x`` or ``x0, x1, …`` for the inputs, ``y`` for the targets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nndiag.errors import InputError

INPUT = re.compile(r"x(0|[1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Named:
    """``tensors`` by name, the inputs in order and ``y`` last; ``left_out`` lists the arrays that no name
    claims.
    """

    tensors: Mapping[str, Tensor]
    left_out: str = ""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The model's inputs."""
        return tuple(tensor for name, tensor in self.tensors.items() if name != "y")

    @property
    def targets(self) -> Tensor | None:
        """The loss's targets."""
        return self.tensors.get("y")


def wanted_names(names: Iterable[str], source: str) -> list[str]:
    """Return the names that make up the probe, inputs first.

    Raises:
        InputError: there is no ``x``, or the numbered inputs have a gap or stand beside ``x``.
    """
    names = list(names)
    numbered = sorted(int(match[1]) for name in names if (match := INPUT.fullmatch(name)))
    if "x" in names and numbered:
        raise InputError(source, f"holds both x and x{numbered[0]}", "save the inputs as x, or as x0, x1, …")
    if numbered != list(range(len(numbered))):
        there = ", ".join(f"x{number}" for number in numbered)
        raise InputError(source, f"holds {there}", "number the inputs from x0 without a gap")
    inputs = ["x"] if "x" in names else [f"x{number}" for number in numbered]
    if not inputs:
        raise InputError(
            source,
            f"holds {listed(sorted(names)) or 'no arrays'}",
            "save the inputs as x, or give file.py:callable",
        )
    return inputs + (["y"] if "y" in names else [])


def named_tensors(arrays: Mapping[str, object], source: str) -> Named:
    """Return the probe among ``arrays``, each a tensor or numpy array; only those that are wanted are looked
    up.
    """
    wanted = wanted_names(arrays, source)
    tensors = {name: as_tensor(arrays[name], name, source) for name in wanted}
    return Named(tensors, listed([name for name in arrays if name not in tensors]))


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
