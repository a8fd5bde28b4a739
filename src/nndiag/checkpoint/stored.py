"""Tensors of a large archive of torch.save that stay in the file, and are read with ``pread`` when they are asked for.

The file is not mapped into memory: a mapped file that is cut short kills the process that reads it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from nndiag.checkpoint.inventory import Inventory
from nndiag.checkpoint.lazy import LazyTensors
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.plain import place_in_file
from nndiag.checkpoint.source import Watched, changed
from nndiag.checkpoint.torch_load import load_checked
from nndiag.checkpoint.torch_zip import check_zip
from nndiag.errors import InputError

SMALL = 1 << 16
"""Bytes up to which a tensor is read with the rest: step counters and the like."""


def load_stored(
    path: Path, file: BinaryIO, permission: Permission = NOTHING
) -> tuple[object, Watched | None]:
    """Load an archive without the values of its large tensors.

    Args:
        path: the file's name.
        file: the file, at its start.
        permission: further names that its pickle may contain.

    Returns:
        The value, with tensors on the device ``meta`` that ``read`` turns into real ones, and the file to read them
        from; or the whole value and ``None``, where torch does not say for certain where every tensor lies.

    Raises:
        InputError: the archive is damaged, or refused.
    """
    inventory = check_zip(path, file, permission)
    watched = Watched(path)
    if not os.path.sameopenfile(file.fileno(), watched.descriptor):
        raise changed(path)
    file.seek(0)
    with contextlib.suppress(InputError):  # torch does not find its way in every archive without reading it
        tree = load_checked(path, file, permission, values=False)
        if _places_are_known(file, inventory, tree):
            _read_small(watched, tree)
            return tree, watched
    file.seek(0)
    return load_checked(path, file, permission), None


def read(file: Watched, tensor: Tensor) -> Tensor:
    """Return a tensor with its values.

    Raises:
        InputError: the file changed.
    """
    first = _place(tensor)
    if first is None:
        return tensor
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    span = 1 + sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride(), strict=True))
    return file.tensor(first, tensor.dtype, (span,)).as_strided(tensor.shape, tensor.stride())


def _place(tensor: Tensor) -> int | None:
    """Return where in the file the first number of a tensor lies; ``None`` where it was read."""
    storage = place_in_file(tensor)
    return None if storage is None else storage + int(tensor.storage_offset()) * tensor.element_size()


def late(file: Watched, tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Return tensors of which every one is read when it is asked for."""

    def fill(name: str, first: int, tensor: Tensor) -> None:
        place = _place(tensors[name])
        if place is None:
            tensor.copy_(tensors[name].view(-1)[first : first + tensor.numel()])
        else:
            file.fill(place + first * tensor.itemsize, tensor)

    in_order = all(tensor.is_contiguous() for tensor in tensors.values())
    return LazyTensors(tensors, lambda name: read(file, tensors[name]), fill if in_order else None)


class StoredState(Mapping[str, object]):
    """What an optimiser keeps for one parameter, read when it is asked for."""

    def __init__(self, file: Watched, values: Mapping[str, object]) -> None:
        self._file, self._values = file, values

    def __getitem__(self, name: str) -> object:
        value = self._values[name]
        return read(self._file, value) if isinstance(value, Tensor) else value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _places_are_known(file: BinaryIO, inventory: Inventory, tree: object) -> bool:
    """Return whether the places that torch noted are those of the records that the pickle names.

    From archives of some form torch works the places out in the order of the pickle, and does not look them up.
    """
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    named = [
        reader.get_record_offset(f"data/{key}")  # type: ignore[attr-defined]
        for key in inventory.storages
    ]
    noted = {place_in_file(tensor) for _, _, tensor in _tensors(tree)}
    worked_out = ".format_version" in reader.get_all_records()
    return noted == set(named) and (not worked_out or named == sorted(named))


def _read_small(file: Watched, tree: object) -> None:
    for owner, key, tensor in _tensors(tree):
        if tensor.untyped_storage().nbytes() <= SMALL or not tensor.dim():
            if isinstance(owner, dict):
                dict.__setitem__(owner, key, read(file, tensor))
            elif isinstance(owner, list) and isinstance(key, int):
                list.__setitem__(owner, key, read(file, tensor))


def _tensors(tree: object) -> list[tuple[object, object, Tensor]]:
    """Return every tensor inside dicts, lists and tuples, with what holds it and where in there."""
    found: list[tuple[object, object, Tensor]] = []
    open_: list[dict[object, object] | list[object] | tuple[object, ...]] = []
    if isinstance(tree, dict | list | tuple):
        open_.append(tree)
    seen = {id(tree)}
    while open_:
        owner = open_.pop()
        for key, value in dict.items(owner) if isinstance(owner, dict) else enumerate(owner):
            if isinstance(value, Tensor):
                found.append((owner, key, value))
            elif isinstance(value, dict | list | tuple) and id(value) not in seen:
                seen.add(id(value))
                open_.append(value)
    return found
