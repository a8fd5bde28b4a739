"""Files of tables into Arrow, whatever they claim: what a few bytes would unpack to without end is refused.

Parquet says its sizes in its footer, and words that repeat are left packed. Arrow's own files are read uncompressed
alone, as a stream and through no mapping, which a file that is cut short would turn into a dead process. JSON lines
become a column for each name, with a place in each row, so that names times rows is what they cost.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nndiag.checkpoint.source import damaged, opened
from nndiag.errors import InputError
from nndiag.probe.npz import DENSEST, FREE

_WIDEST = 8
"""Bytes of a number."""
_MAGIC = b"ARROW1"
# every string of the text in turn, and whether it is the name of a value; none goes on in the next line
_STRING = re.compile(rb'"(?:[^"\\\n]|\\[^\n])*+(?:"(\s*:)?|)')
_DEEPEST = 64
_AT_ONCE = 1 << 22


def read_file(pa: Any, file: Path, limit: int | None) -> Any:
    """Return the table in a ``.parquet``, ``.jsonl`` or ``.arrow`` file.

    Args:
        pa: the library.
        file: the file.
        limit: how many rows are wanted, from the first; there may be more.

    Raises:
        InputError: it would unpack to more than ``FREE`` bytes and ``DENSEST`` times its size, or changes meanwhile.
    """
    reader = {".parquet": _parquet, ".jsonl": _lines}.get(file.suffix.lower(), _arrow)
    try:
        with opened(file):
            table = reader(pa, file, limit)
    except pa.ArrowMemoryError:  # asked for at once, by whatever length the file says
        raise damaged(file, "a part claims more bytes than a machine has") from None
    size = file.stat().st_size
    if table.num_rows > _WIDEST * (FREE + size) and file.suffix.lower() != ".parquet":
        raise InputError(
            file, f"is refused: it claims {table.num_rows} rows in {size} bytes", "save it again"
        )
    return table


def _parquet(pa: Any, file: Path, limit: int | None) -> Any:
    from pyarrow import parquet

    footer = parquet.ParquetFile(file).metadata
    columns = [footer.schema.column(index) for index in range(footer.num_columns)]
    widths = [max(_WIDEST, column.length or 0) for column in columns]
    claimed = 0
    for group in range(footer.num_row_groups):
        for index, width in enumerate(widths):
            chunk = footer.row_group(group).column(index)
            claimed += max(chunk.total_uncompressed_size, 0) + width * max(chunk.num_values, 0)
    _require_room(file, claimed)
    words = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    found = parquet.ParquetFile(file, read_dictionary=words)
    return pa.Table.from_batches(_enough(found.iter_batches(), limit), schema=found.schema_arrow)


def _lines(pa: Any, file: Path, limit: int | None) -> Any:
    from pyarrow import json as lines

    text = file.read_bytes()
    names = {found.group() for found in _STRING.finditer(text) if found.group(1)}
    _require_room(file, _WIDEST * len(names) * text.count(b"{"))
    if _depth(_STRING.sub(b"", text)) > _DEEPEST:
        raise InputError(file, "is refused: its values lie too deep in each other", "save plain columns")
    return lines.read_json(pa.BufferReader(text))


def _depth(text: bytes) -> int:
    """Return how many brackets are open at once, for which the library takes a part of the stack each."""
    steps = np.zeros(256, dtype=np.int8)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    deepest = open_ = 0
    for start in range(0, len(text), _AT_ONCE):
        walk = open_ + steps[np.frombuffer(text[start : start + _AT_ONCE], np.uint8)].cumsum(dtype=np.int64)
        deepest, open_ = max(deepest, int(walk.max())), int(walk[-1])
    return deepest


def _arrow(pa: Any, file: Path, limit: int | None) -> Any:
    with pa.OSFile(str(file)) as source:
        start = 8 if source.read(len(_MAGIC)) == _MAGIC else 0  # the same stream, with an index behind it
        source.seek(start)
        for message in pa.ipc.MessageReader.open_stream(source):
            if _is_compressed(message):
                raise InputError(file, "is refused: its batches are compressed", "save it uncompressed")
        source.seek(start)
        reader = pa.ipc.open_stream(source)
        return pa.Table.from_batches(_enough(reader, limit), schema=reader.schema)


def _is_compressed(message: Any) -> bool:
    """Return whether the buffers of a message are compressed, as its FlatBuffers table says (``Message.fbs``)."""
    held = memoryview(message.metadata)

    def number(form: str, at: int) -> int:
        return int(struct.unpack_from(form, held, at)[0])

    def field(table: int, index: int) -> int:
        places = table - number("<i", table)
        inside = 4 + 2 * index < number("<H", places)
        offset = number("<H", places + 4 + 2 * index) if inside else 0
        return table + offset if offset else 0

    def inner(table: int, index: int) -> int:
        at = field(table, index)
        return at + number("<I", at) if at else 0

    header = inner(number("<I", 0), 2)
    if message.type == "dictionary":
        header = inner(header, 1)
    return message.type in ("record batch", "dictionary") and bool(header) and field(header, 3) != 0


def _enough(batches: Any, limit: int | None) -> Iterator[Any]:
    """Yield batches until there are ``limit`` rows."""
    rows = 0
    for batch in batches:
        yield batch
        rows += batch.num_rows
        if limit is not None and rows >= limit:
            return


def _require_room(file: Path, claimed: int) -> None:
    size = file.stat().st_size
    if claimed > FREE + DENSEST * size:
        why = f"is refused: it unpacks to some {claimed:,} bytes, {claimed // size:,} times its size"
        raise InputError(file, why, "save it as .safetensors or .npz, uncompressed")
