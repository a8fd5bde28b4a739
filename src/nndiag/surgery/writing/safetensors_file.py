"""Safetensors files: the same header and order of tensors, written one tensor after the other.

The library sorts tensors and wants all of them at once; here they stay in their order and only one is in memory.
The format is eight bytes with the length of a JSON header, the header, and the tensors' bytes in a row
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from nndiag.checkpoint.safetensors_file import open_safetensors
from nndiag.checkpoint.source import Watched
from nndiag.surgery.writing.changes import Changes
from nndiag.surgery.writing.tensor_tree import bytes_of

_AT_ONCE = 1 << 24
_ALIGNMENT = 8


def write_safetensors(source: Path, changes: Changes, target: Path) -> int:
    """Write a safetensors file anew with some of its tensors changed; metadata, order and types stay.

    Args:
        source: the file that is read.
        changes: new tensors by name; names that are not in this file do not matter.
        target: the file to write.

    Returns:
        The bytes of all tensors.

    Raises:
        InputError: the source is damaged or changed.
        OSError: the target cannot be written.
    """
    tensors = open_safetensors(source).tensors
    file = Watched(source)
    length = int.from_bytes(file.read(0, 8), "little")
    old: dict[str, Any] = json.loads(file.read(8, length))
    header: dict[str, Any] = {"__metadata__": old["__metadata__"]} if "__metadata__" in old else {}
    parts: list[tuple[int, int] | Tensor] = []  # where bytes lie in the source, or new values
    size = 0
    for name in tensors:
        new = changes.weights.get(name)
        if new is None:
            begin, end = old[name]["data_offsets"]
            header[name] = {**old[name], "data_offsets": [size, size + end - begin]}
            parts.append((8 + length + begin, end - begin))
        else:
            end = size + new.numel() * new.element_size()
            header[name] = {
                "dtype": old[name]["dtype"],
                "shape": list(new.shape),
                "data_offsets": [size, end],
            }
            parts.append(new)
        size = header[name]["data_offsets"][1]
    file.check_unchanged()
    with target.open("xb") as stream:
        _write_header(stream, header)
        for part in parts:
            if isinstance(part, Tensor):
                stream.write(bytes_of(part))
            else:
                _copy(file, *part, stream)
    file.check_unchanged()
    return size


def _write_header(stream: BinaryIO, header: Mapping[str, Any]) -> None:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little") + text)


def _copy(file: Watched, start: int, count: int, stream: BinaryIO) -> None:
    for first in range(start, start + count, _AT_ONCE):
        stream.write(file.read(first, min(_AT_ONCE, start + count - first)))
