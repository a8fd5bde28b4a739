"""safetensors files: the library checks header and bounds; nothing in them is code.

Tensors are read one by one with ``pread`` instead of being mapped: pages of a mapping count as memory of the process
for as long as they are there, and a mapped file that is cut short kills the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from nndiag.checkpoint.identify import SAFETENSORS_HEADER_LIMIT
from nndiag.checkpoint.inventory import MAX_TENSORS
from nndiag.checkpoint.lazy import LazyTensors, spec
from nndiag.checkpoint.source import Watched, damaged, summary
from nndiag.errors import InputError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
_OTHER_OBJECTS = 100_000  # the header itself and its metadata, in which other tools put texts of JSON


@dataclass(frozen=True)
class SafetensorsFile:
    """What a file holds: its tensors, not yet read, the ``__metadata__`` of its header, and the file."""

    tensors: LazyTensors
    metadata: Mapping[str, str]
    file: Watched


def open_safetensors(path: Path) -> SafetensorsFile:
    """Open a safetensors file.

    Raises:
        InputError: it is damaged, holds too many tensors, or tensors of a type that torch does not have. Reading a
            tensor raises it where the file changed.
    """
    file = Watched(path)
    length = int.from_bytes(file.read(0, 8), "little")
    if length > SAFETENSORS_HEADER_LIMIT:
        raise damaged(path, f"a header of {length} bytes")
    text = file.read(8, length)
    # The library would take six seconds and a gigabyte for a million of them; each is an object.
    if text.count(b"{") > MAX_TENSORS + _OTHER_OBJECTS:
        raise _too_many(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            # Older releases know no file order; sorted names are then the order.
            names = list(opened.offset_keys() if hasattr(opened, "offset_keys") else opened.keys())
            metadata = opened.metadata() or {}
    # Besides its own error, the library lets the system's through.
    except Exception as error:
        raise damaged(path, summary(error)) from error
    if len(names) > MAX_TENSORS:
        raise _too_many(path)
    try:
        header = json.loads(text)
        specs = {name: _spec(path, name, header[name]) for name in names}
        places = {name: 8 + length + header[name]["data_offsets"][0] for name in names}
    # The library has read this header, but perhaps not as Python does.
    except (ValueError, TypeError, LookupError, RuntimeError, RecursionError) as error:
        raise damaged(path, "a header that can be read in several ways") from error

    def read(name: str) -> Tensor:
        described = specs[name]
        return file.tensor(places[name], described.dtype, tuple(described.shape))

    def fill_part(name: str, first: int, tensor: Tensor) -> None:
        file.fill(places[name] + first * tensor.itemsize, tensor)

    return SafetensorsFile(LazyTensors(specs, read, fill_part), metadata, file)


def load_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Return the tensors of a safetensors file, read when asked for, and the ``__metadata__`` of its header.

    Raises:
        InputError: as for ``open_safetensors``.
    """
    found = open_safetensors(path)
    return found.tensors, found.metadata


def _too_many(path: Path) -> InputError:
    return InputError(path, f"holds more than {MAX_TENSORS} tensors", "save the weights alone")


def _spec(path: Path, name: str, entry: Mapping[str, object]) -> Tensor:
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    assert isinstance(shape, list)
    assert isinstance(offsets, list)
    if kind not in _DTYPES:
        raise InputError(
            path, f"holds {name} as {kind}, which torch has no plain type for", "save it as float32"
        )
    found = spec(_DTYPES[str(kind)], tuple(shape))
    if offsets[1] - offsets[0] != found.numel() * found.element_size():
        raise damaged(path, f"{name} does not have the size that its shape says")
    return found
