"""The bytes of a file from first to last, read by one thread while another works on them."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread

from nndiag.checkpoint.source import Watched

CHUNK = 1 << 21
"""Bytes: few enough for the processor's cache, and so many that it hardly matters how long a thread waits to go on."""
_CHUNKS = 3


def read_ahead(file: Watched) -> Iterator[memoryview]:
    """Yield the bytes of a file in order, in chunks that hold until the next one is asked for.

    Raises:
        InputError: the file ends before it did when it was opened, or cannot be read.
    """
    if file.size <= CHUNK:
        yield memoryview(file.read(0, file.size))
        return
    empty, full = SimpleQueue[memoryview | None](), SimpleQueue[memoryview | BaseException]()
    for _ in range(_CHUNKS):
        empty.put(memoryview(bytearray(CHUNK)))
    # a daemon: an error elsewhere must not wait for the rest of a large file
    Thread(target=_read, args=(file, empty, full), name="read ahead", daemon=True).start()
    left = file.size
    try:
        while left:
            chunk = full.get()
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
            left -= chunk.nbytes
            empty.put(chunk)
    finally:
        empty.put(None)


def _read(
    file: Watched, empty: SimpleQueue[memoryview | None], full: SimpleQueue[memoryview | BaseException]
) -> None:
    """Fill chunk after chunk, until the file ends or nobody wants more."""
    offset = 0
    try:
        while offset < file.size and (chunk := empty.get()) is not None:
            part = chunk[: file.size - offset]
            file.read_into(offset, part)
            full.put(part)
            offset += part.nbytes
    except BaseException as error:  # it is raised where the bytes are asked for
        full.put(error)
