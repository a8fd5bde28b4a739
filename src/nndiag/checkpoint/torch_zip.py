"""torch.save's zip archives: directory checked, pickle walked through, and only then loaded."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from nndiag.checkpoint.inventory import Inventory
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.pickle_walk import MAX_PICKLE, walk_pickle
from nndiag.checkpoint.source import damaged, size_of, summary
from nndiag.checkpoint.torch_load import load_checked
from nndiag.errors import InputError

_ENCRYPTED = 0x1


def load_zip(path: Path, file: BinaryIO, permission: Permission = NOTHING) -> object:
    """Load a zip archive that torch.save wrote.

    Args:
        path: the file's name.
        file: the file, at its start.
        permission: further names that its pickle may contain.

    Raises:
        CodeError: it names what is not allowed.
        InputError: it is damaged, another kind of zip, or claims what it does not hold.
    """
    check_zip(path, file, permission)
    file.seek(0)
    return load_checked(path, file, permission)


def check_zip(path: Path, file: BinaryIO, permission: Permission = NOTHING) -> Inventory:
    """Return what the pickle of an archive claims, all of which the archive holds.

    Raises:
        CodeError: it names what is not allowed.
        InputError: it is damaged, another kind of zip, or claims what it does not hold.
    """
    top, entries, pickled = _checked_directory(path, file)
    _check_same_view(path, file, top, entries, pickled)
    return _check_claims(path, top, entries, pickled, permission)


def is_native(path: Path, file: BinaryIO) -> bool:
    """Return whether the storages of an archive are in this machine's byte order."""
    try:
        with zipfile.ZipFile(file) as archive:
            orders = [entry for entry in archive.infolist() if entry.filename.endswith("/byteorder")]
            same = all(
                archive.read(entry) == sys.byteorder.encode() for entry in orders if entry.file_size < 16
            )
    except Exception as error:  # of half a dozen kinds
        raise damaged(path, summary(error)) from error
    file.seek(0)
    return same


def _checked_directory(path: Path, file: BinaryIO) -> tuple[str, list[zipfile.ZipInfo], bytes]:
    """Return the name of the folder in the archive, its entries and its pickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            top = entries[0].filename.partition("/")[0] if entries else ""
            _check_kind(path, top, {entry.filename for entry in entries})
            check_entries(path, entries, size_of(file))
            return top, entries, archive.read(f"{top}/data.pkl")
    except InputError:
        raise
    # zipfile raises half a dozen kinds of exception over damaged bytes.
    except Exception as error:
        raise damaged(path, summary(error)) from error


def _check_kind(path: Path, top: str, names: set[str]) -> None:
    tails = {name.removeprefix(f"{top}/") for name in names}
    save = "save model.state_dict() with torch.save and give that"
    if "constants.pkl" in tails:
        raise InputError(path, "is a TorchScript archive, which is code", save)
    if "data.pkl" in tails and f"{top}/data.pkl" in names:
        return
    if "model.weights.h5" in names:
        raise InputError(
            path, "is a Keras archive, which is not supported", "save the weights as safetensors"
        )
    if any(name.endswith(".npy") for name in names):
        raise InputError(
            path, "is an .npz archive of NumPy arrays", "give it as --data, or give the checkpoint"
        )
    raise InputError(path, "is a zip archive that torch.save did not write", "give the checkpoint itself")


def check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse a zip directory that is ambiguous, or of which the entries are not stored as they are.

    Raises:
        InputError: it is.
    """
    again = "save it again with torch.save"
    # torch looks names up without regard to case
    if len({entry.filename.lower() for entry in entries}) != len(entries):
        raise InputError(path, "is refused: its zip directory names an entry twice", again)
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise InputError(path, "is refused: its zip entries are encrypted", "decrypt it first")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise InputError(path, "is refused: its zip entries are compressed", again)
        if entry.filename.endswith("/data.pkl") and entry.file_size > MAX_PICKLE:
            raise InputError(path, f"has a pickle of more than {MAX_PICKLE} bytes", "save the weights alone")
    if sum(entry.file_size for entry in entries) > size:
        raise InputError(path, "is refused: its zip entries overlap", again)


def _check_same_view(
    path: Path, file: BinaryIO, top: str, entries: list[zipfile.ZipInfo], pickled: bytes
) -> None:
    """Refuse an archive that Python's zip reader (checked here) and torch's (loads it) see differently."""
    file.seek(0)
    prefix = f"{top}/"
    try:
        reader = torch._C.PyTorchFileReader(file)
        sizes = {entry.filename.removeprefix(prefix): entry.file_size for entry in entries}
        same = set(reader.get_all_records()) == set(sizes) and reader.get_record("data.pkl") == pickled
    except Exception as error:
        raise damaged(path, summary(error)) from error
    if not same:
        raise InputError(path, "is refused: its zip directory is ambiguous", "save it again with torch.save")


def _check_claims(
    path: Path, top: str, entries: list[zipfile.ZipInfo], pickled: bytes, permission: Permission
) -> Inventory:
    inventory = Inventory(path, permission)
    walk_pickle(io.BytesIO(pickled), inventory)
    sizes = {entry.filename: entry.file_size for entry in entries}
    for storage in inventory.storages.values():
        held = sizes.get(f"{top}/data/{storage.key}")
        if held is None:
            raise damaged(path, f"storage {storage.key} is missing")
        if held < storage.nbytes:
            raise damaged(
                path, f"storage {storage.key} claims {storage.nbytes} bytes and its record holds {held}"
            )
    inventory.check_totals()
    return inventory
