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
from typing import BinaryIO

from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.source import damaged, size_of
from nndiag.errors import InputError
from nndiag.surgery.writing.archives import Archive
from nndiag.surgery.writing.inert import read_pickle, write_pickle
from nndiag.surgery.writing.tensor_tree import TensorTree, claim_of, tensors_in

Edit = Callable[[TensorTree], None]

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
    archive = Archive(path, source)
    _require_byte_order(path, "byteorder" not in archive.names or archive.read("byteorder") == b"little")
    root, protocol = read_pickle(path, io.BytesIO(archive.read("data.pkl")))
    tree = TensorTree(path, root, lambda key: archive.read(f"data/{key}"))
    before = _items(tree).keys()
    edit(tree)
    tree.settle()
    new: dict[str, bytes | bytearray] = {f"data/{key}": content for key, content in tree.storages.items()}
    if tree.changed:
        new["data.pkl"] = write_pickle(tree.root, protocol)
    archive.write(target, new, gone={f"data/{key}" for key in before - _items(tree).keys()})


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


def _require_byte_order(path: Path, little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise InputError(
            path, "has its numbers in the byte order of another kind of machine",
            "load it here and save it again with torch.save",
        )  # fmt: skip
