"""What torch.save wrote before zip: five pickles in a row, then the storages' bytes."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from nndiag.checkpoint.inventory import Inventory
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.pickle_walk import walk_pickle
from nndiag.checkpoint.source import damaged, size_of
from nndiag.checkpoint.torch_load import load_checked

_PREAMBLE = 3  # magic number, protocol version, facts of the system that wrote it


def load_legacy(path: Path, file: BinaryIO, permission: Permission = NOTHING) -> object:
    """Load a file that torch.save wrote without zip.

    Args:
        path: the file's name.
        file: the file, at its start.
        permission: further names that its pickle may contain.

    Raises:
        CodeError: it names what is not allowed.
        InputError: it is damaged, or names or claims what is not allowed.
    """
    inventory = Inventory(path, permission)
    for _ in range(_PREAMBLE):
        walk_pickle(file, inventory)
    walk_pickle(file, inventory)
    _check_storages(path, file, inventory, walk_pickle(file, inventory))
    inventory.check_totals()
    file.seek(0)
    return load_checked(path, file, permission=permission)


def _check_storages(path: Path, file: BinaryIO, inventory: Inventory, keys: object) -> None:
    # A storage that is described but not listed would be left uninitialised.
    if not isinstance(keys, list) or set(keys) != set(inventory.storages) or len(set(keys)) != len(keys):
        raise damaged(path, "its list of storages does not match its tensors")
    size = size_of(file)
    for key in keys:
        storage = inventory.storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count * storage.item != storage.nbytes:
            raise damaged(
                path, f"storage {key} claims {storage.nbytes} bytes and its record {count * storage.item}"
            )
        if file.tell() + storage.nbytes > size:
            raise damaged(path, f"storage {key} ends beyond the file")
        file.seek(storage.nbytes, 1)
