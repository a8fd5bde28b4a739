"""Files of torch.save, zip archives and what came before them, written again with some of their tensors changed.

Everything that did not change is copied byte for byte: of an archive every record, and the pickle too where no shape
changed. Nothing that the pickle names is imported or run.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import torch

from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.source import damaged, size_of, summary
from nndiag.errors import InputError
from nndiag.surgery.writing.inert import read_pickle, write_pickle
from nndiag.surgery.writing.tensor_tree import TensorTree, claim_of, tensors_in

Edit = Callable[[TensorTree], None]

_MADE_BY_WRITER = frozenset({"version", ".data/serialization_id"})
_ALIGNMENT = b"64"  # what the writer does by default
_PREAMBLE = 3


def write_torch(path: Path, source: BinaryIO, edit: Edit, target: BinaryIO) -> None:
    """Write a file of torch.save, of either form, with some of its tensors changed.

    Args:
        path: the name of the source, for messages.
        source: the file that is read, at its start; it was opened as a checkpoint before, and so checked.
        edit: puts new values into the tree.
        target: the file that is written.

    Raises:
        InputError: the source is damaged, or in the byte order of another machine.
        OSError: the target cannot be written.
    """
    form = identify(path, source)
    if form == "torch":
        _write_zip(path, source, edit, target)
    else:
        _write_legacy(path, source, edit, target)


def _write_zip(path: Path, source: BinaryIO, edit: Edit, target: BinaryIO) -> None:
    try:
        reader = torch._C.PyTorchFileReader(source)
        names: list[str] = reader.get_all_records()
        pickled: bytes = reader.get_record("data.pkl")
        order = reader.get_record("byteorder") if "byteorder" in names else b"little"
    except Exception as error:  # torch raises nearly every exception there is over damaged bytes
        raise damaged(path, summary(error)) from error
    _require_byte_order(path, order == b"little")
    root, protocol = read_pickle(path, io.BytesIO(pickled))
    tree = TensorTree(path, root, lambda key: reader.get_record(f"data/{key}"))
    before = _storages(tree)
    edit(tree)
    tree.settle()
    gone = {f"data/{key}" for key in before - _storages(tree)}
    shield = _Shield(target)
    writer = torch._C.PyTorchFileWriter(cast(BinaryIO, shield))
    for name in names:
        if name in _MADE_BY_WRITER or name in gone:
            continue
        if name == "data.pkl":
            content = write_pickle(tree.root, protocol) if tree.changed else pickled
        elif name == ".storage_alignment":
            content = _ALIGNMENT
        elif name.startswith("data/") and name[5:] in tree.storages:
            content = bytes(tree.storages[name[5:]])
        else:
            content = reader.get_record(name)
        writer.write_record(name, content, len(content))
        shield.check()
    for key in tree.storages:
        if f"data/{key}" not in names:
            writer.write_record(f"data/{key}", bytes(tree.storages[key]), len(tree.storages[key]))
    writer.write_end_of_file()
    shield.check()


class _Shield:
    """A file that remembers what went wrong and lets torch go on: an exception would pass through its writer in C++,
    whose end writes once more and then stops the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: memoryview) -> int:
        """Write, or do as if."""
        if self.error is None:
            try:
                self.file.write(content)
            except OSError as error:
                self.error = error
        return len(content)

    def check(self) -> None:
        """Raise what went wrong.

        Raises:
            OSError: what the system said.
        """
        if self.error is not None:
            raise self.error


def _write_legacy(path: Path, source: BinaryIO, edit: Edit, target: BinaryIO) -> None:
    for _ in range(_PREAMBLE):
        facts, _ = read_pickle(path, source)
    _require_byte_order(path, not isinstance(facts, dict) or facts.get("little_endian", True) is True)
    start = source.tell()
    root, protocol = read_pickle(path, source)
    behind = source.tell()
    keys, _ = read_pickle(path, source)
    places = _places(path, source, root, keys)

    def read(key: str) -> bytes:
        source.seek(places[key][0])
        return source.read(places[key][1])

    tree = TensorTree(path, root, read)
    edit(tree)
    tree.settle()
    after = _items(tree)
    listed = [key for key in places if key in after] + [key for key in after if key not in places]
    source.seek(0)
    target.write(source.read(start))
    target.write(write_pickle(tree.root, protocol) if tree.changed else source.read(behind - start))
    target.write(pickle.dumps(listed, protocol=protocol))
    for key in listed:
        content = tree.storages[key] if key in tree.storages else read(key)
        target.write((len(content) // after[key]).to_bytes(8, "little"))
        target.write(content)


def _places(path: Path, source: BinaryIO, root: object, keys: object) -> dict[str, tuple[int, int]]:
    """Return where every storage lies and how long it is, in the order of the file; all claims were checked before."""
    items = _items(TensorTree(path, root, lambda key: b""))
    if not isinstance(keys, list) or not set(keys) <= set(items):
        raise damaged(path, "its list of storages does not match its tensors")
    places, size = {}, size_of(source)
    for key in keys:
        length = int.from_bytes(source.read(8), "little") * items[key]
        places[key] = source.tell(), length
        if source.tell() + length > size:
            raise damaged(path, f"storage {key} ends beyond the file")
        source.seek(length, io.SEEK_CUR)
    return places


def _items(tree: TensorTree) -> dict[str, int]:
    """Return the storages that tensors refer to, with the bytes of one of their numbers."""
    found = {}
    for slot in tensors_in(tree.root):
        kind = claim_of(slot.node)[1].last
        found[slot.geometry.storage] = 1 if kind == "UntypedStorage" else slot.geometry.dtype.itemsize
    return found


def _storages(tree: TensorTree) -> set[str]:
    return set(_items(tree))


def _require_byte_order(path: Path, little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise InputError(
            path, "has its numbers in the byte order of another kind of machine",
            "load it here and save it again with torch.save",
        )  # fmt: skip
