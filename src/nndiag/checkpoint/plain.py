"""Values from a file, brought down to plain ones: no subclass, no attribute and no method of the file's own.

A pickle may hang attributes on an OrderedDict or a Parameter that shadow its methods (``items``, ``numel``),
so nothing here calls a method of a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nndiag.checkpoint.inventory import unsupported

MAX_DEPTH = 6
MAX_VALUES = 1_000_000

LEFT_OUT = object()
"""What ``plain_value`` returns for a value that is not plain."""


def entries(value: object) -> Iterator[tuple[object, object]]:
    """Yield the entries of a dict in file order; nothing for anything else."""
    if isinstance(value, dict):
        yield from dict.items(value)


def named_entries(value: object) -> Iterator[tuple[str, object]]:
    """Yield the entries of a dict whose keys are strings."""
    for key, entry in entries(value):
        if isinstance(key, str):
            yield str(key), entry


def plain_tensor(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return the values of a saved tensor or Parameter, without attributes and without a graph; it may still lie in
    its file.

    Raises:
        InputError: it is not dense, or has no values on the CPU.
    """
    bare = torch.Tensor.detach(tensor)
    if bare.layout is not torch.strided:
        raise unsupported(path, f"{name} as a sparse tensor")
    if bare.is_quantized:
        raise unsupported(path, f"{name} as a quantised tensor")
    if bare.device.type != "cpu" and place_in_file(bare) is None:
        raise unsupported(path, f"{name} without its values (on {bare.device.type})")
    return bare


def place_in_file(tensor: Tensor) -> int | None:
    """Return where in its file the storage of a tensor lies that was loaded without its values (``checkpoint.stored``);
    ``None`` for any other.
    """
    if tensor.device.type != "meta":
        return None
    place = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    return place if isinstance(place, int) else None


def plain_number(value: object) -> bool | int | float | None:
    """Return a number, or the number in a tensor of no dimensions; ``None`` for anything else."""
    if isinstance(value, Tensor):
        bare = torch.Tensor.detach(value)
        if bare.ndim or bare.layout is not torch.strided or bare.is_complex() or bare.device.type != "cpu":
            return None
        number: bool | int | float = bare.item()
        return number
    return value if type(value) in (bool, int, float) else None  # type: ignore[return-value]


def plain_value(value: object) -> object:
    """Return numbers, strings, ``None``, and tuples and dicts of them; tensors of one number become numbers.

    What is not plain is left out of its list or dict, and is ``LEFT_OUT`` at the top.
    """
    return _Plain().convert(value, MAX_DEPTH)


class _Plain:
    """One conversion with a budget, because a few shared lists can unfold into any number of values."""

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def convert(self, value: object, depth: int) -> object:
        self.left -= 1
        if self.left < 0 or depth < 0:
            return LEFT_OUT
        if value is None or type(value) in (str, bool, int, float):
            return value
        if isinstance(value, Tensor):
            number = plain_number(value)
            return LEFT_OUT if number is None else number
        if isinstance(value, (list, tuple)):
            items = (self.convert(item, depth - 1) for item in value)
            return tuple(item for item in items if item is not LEFT_OUT)
        if isinstance(value, dict):
            pairs = ((key, self.convert(item, depth - 1)) for key, item in dict.items(value))
            return {key: item for key, item in pairs if item is not LEFT_OUT and isinstance(key, (str, int))}
        return LEFT_OUT
