"""``.metadata`` of torch.distributed.checkpoint: a pickle, read without running or building anything that it names.

``pickle.load``, which the stock reader uses, runs whatever the file asks for. Here every name must be on a short list
and stands for an inert record of this module; only numbers, strings and names of types are taken out of those.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nndiag.checkpoint.inventory import MAX_TENSORS
from nndiag.checkpoint.source import Watched, damaged, summary
from nndiag.errors import InputError

METADATA = ".metadata"
MAX_METADATA = 256 << 20
_LIMIT = 1 << 62
_SPARE_OBJECTS = 100_000
_BYTES_AN_OBJECT = 8

_PLACE = "torch.distributed.checkpoint."
_RECORDS = frozenset(
    [
        _PLACE + "metadata." + name
        for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
            "_MEM_FORMAT_ENCODING", "MetadataIndex", "StorageMeta",
        )
    ]
    + [_PLACE + "filesystem._StorageInfo", _PLACE + "filesystem._StoragePrefix"]
    + ["torch.Size", "torch.serialization._get_layout", "collections.OrderedDict"]
    + ["pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"]
)  # fmt: skip
_DTYPES: Mapping[str, torch.dtype] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor: where it begins, its extent, and the bytes of which file hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and the parts that make it up."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class DcpMetadata:
    """What a checkpoint holds, by the flat names that it was saved under.

    ``values`` are what is no tensor: each says which bytes of which file hold it. ``paths`` are the keys, from the
    outside inwards, that a flat name was made of.
    """

    tensors: Mapping[str, StoredTensor]
    values: Mapping[str, Chunk]
    paths: Mapping[str, tuple[str | int, ...]]


def read_metadata(file: Watched) -> DcpMetadata:
    """Read and check the metadata of a checkpoint.

    Raises:
        InputError: it names anything else than what metadata is made of, is damaged, or claims what cannot be.
    """
    if file.size > MAX_METADATA:
        raise InputError(file.path, f"has more than {MAX_METADATA} bytes", "take it from its source again")
    try:
        root = _Unpickler(file.path, io.BytesIO(file.read(0, file.size))).load()
        return _checked(file.path, root)
    except InputError:
        raise
    # damaged bytes end in any exception, and records may hold anything
    except Exception as error:
        raise damaged(file.path, summary(error)) from error


class _Record:
    """What an object of the pickle is turned into: arguments and attributes, and no behaviour."""

    name = ""

    def __new__(cls, *arguments: object) -> _Record:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    arguments: tuple[object, ...]
    state: Any

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.state[key] = value


class _Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    """Python's own unpickler in Python: the one in C can be made to allocate without bounds by a memo index."""

    dispatch = {  # noqa: RUF012
        code: step
        for code, step in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined, unused-ignore]
        if bytes([code])
        not in (
            pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ,
            pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEWOBJ_EX,
        )
    }  # fmt: skip

    def __init__(self, path: Path, file: io.BytesIO) -> None:
        super().__init__(file)
        self._path = path
        # a byte or two make an object of sixty or more: real metadata has thirty for each
        self._left = _SPARE_OBJECTS + file.getbuffer().nbytes // _BYTES_AN_OBJECT
        self._known: dict[str, object] = {}

    def one_object_more(self) -> None:
        """Count an object that is made."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("more objects than metadata has")

    def find_class(self, module: str, name: str) -> object:
        """Return an inert record, or a type of numbers, for a name on the list."""
        full = f"{module}.{name}"
        if full in _DTYPES:
            return _DTYPES[full]
        if full not in _RECORDS:
            raise InputError(
                self._path, f"is refused: its pickle names {full[:100]}, which would have to run as code",
                "take the checkpoint from its source again, or save it again with torch.distributed.checkpoint",
            )  # fmt: skip
        # made anew for every file: a pickle may set attributes of what it names
        return self._known.setdefault(full, type("_Record", (_Record,), {"name": full}))


def _counted(step: Any) -> Any:
    def counting(self: _Unpickler) -> None:
        self.one_object_more()
        step(self)

    return counting


for _code in (
    pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.MARK, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.REDUCE, pickle.NEWOBJ,
):  # fmt: skip
    _Unpickler.dispatch[_code[0]] = _counted(_Unpickler.dispatch[_code[0]])


def _checked(path: Path, root: object) -> DcpMetadata:
    fields = _fields(root, "metadata.Metadata")
    stored = {}
    for index, info in fields["storage_data"].items():
        at, where = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        offset = at.get("offset")
        stored[at["fqn"], None if offset is None else _counts(offset)] = where
    tensors, values = {}, {}
    described = fields["state_dict_metadata"]
    if len(described) > MAX_TENSORS:
        raise InputError(path, f"holds more than {MAX_TENSORS} entries", "save the weights alone")
    for name, entry in described.items():
        if not isinstance(name, str):
            raise TypeError("a name that is no text")
        if entry.name.endswith(".TensorStorageMetadata"):
            tensors[name] = _tensor(name, _fields(entry, "TensorStorageMetadata"), stored)
        elif (name, None) in stored:
            values[name] = _chunk((), (), stored[name, None])
    paths = fields.get("planner_data") or {}
    return DcpMetadata(
        tensors, values, {name: _keys(keys) for name, keys in paths.items() if isinstance(name, str)}
    )


def _tensor(name: str, fields: Mapping[str, Any], stored: Mapping[Any, Mapping[str, Any]]) -> StoredTensor:
    properties = fields["properties"].state
    dtype = properties[0] if isinstance(properties, tuple) else properties["dtype"]
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a type of numbers that is none")
    shape, chunks, covered = _counts(fields["size"]), [], 0
    for part in fields["chunks"]:
        where = _fields(part, "ChunkStorageMetadata")
        offsets, sizes = _counts(where["offsets"]), _counts(where["sizes"])
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise ValueError("a part with other axes than its tensor")
        if any(a + n > size for a, n, size in zip(offsets, sizes, shape, strict=True)):
            raise ValueError("a part that sticks out of its tensor")
        chunk = _chunk(offsets, sizes, stored[name, offsets])
        numbers = _product(sizes)
        if numbers * dtype.itemsize > chunk.length:
            raise ValueError("a part longer than its bytes")
        covered += numbers
        chunks.append(chunk)
    if covered != _product(shape):
        raise ValueError("a tensor that its parts do not make up")
    return StoredTensor(dtype, shape, tuple(chunks))


def _chunk(offsets: tuple[int, ...], sizes: tuple[int, ...], where: Mapping[str, Any]) -> Chunk:
    if where.get("transform_descriptors"):
        raise ValueError("its parts are compressed; save it without transforms")
    file, (start, length) = where["relative_path"], _counts((where["offset"], where["length"]))
    if not isinstance(file, str):
        raise TypeError("a file name that is none")
    return Chunk(offsets, sizes, file, start, length)


def _fields(record: object, name: str) -> Mapping[str, Any]:
    if (
        not isinstance(record, _Record)
        or not record.name.endswith(name)
        or not isinstance(record.state, dict)
    ):
        raise TypeError(f"no {name}")
    return record.state


def _counts(value: object) -> tuple[int, ...]:
    """Return a ``torch.Size`` or tuple of numbers as such."""
    if isinstance(value, _Record):
        (value,) = value.arguments or ((),)
    if not isinstance(value, list | tuple) or len(value) > 64:
        raise TypeError("a shape that is none")
    if any(type(n) is not int or not 0 <= n < _LIMIT for n in value):
        raise ValueError("an impossible shape")
    return tuple(value)


def _keys(value: object) -> tuple[str | int, ...]:
    if not isinstance(value, tuple) or not value or not all(isinstance(key, str | int) for key in value):
        raise TypeError("a path that is none")
    return value


def _product(counts: tuple[int, ...]) -> int:
    found = 1
    for count in counts:
        found *= count
    return found
