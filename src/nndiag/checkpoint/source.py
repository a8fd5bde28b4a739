"""A file of unknown origin, opened for reading, with every way in which that fails said in one line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from nndiag.errors import InputError


class NoWeightsError(InputError):
    """A file that can be read but holds no weights, such as an optimiser's state."""


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular, non-empty file and watch that it stays the same while it is read.

    Args:
        path: the file.

    Yields:
        The file, open for reading bytes, at its start.

    Raises:
        InputError: the file is missing, unreadable, empty, no file, or changed before the block ended.
    """
    before = _stat(path)
    if stat.S_ISDIR(before.st_mode):
        raise InputError(path, "is a directory where a checkpoint file is meant", "name a file in it")
    if not stat.S_ISREG(before.st_mode):
        raise InputError(path, "is not a regular file", "copy the checkpoint into a file first")
    if before.st_size == 0:
        raise InputError(path, "is empty (0 bytes)", "copy it again, or take an earlier checkpoint")
    try:
        file = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        yield file
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise InputError(path, "changed while it was read", "wait until it is written, then try again")


def size_of(file: BinaryIO) -> int:
    """Return the length of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for a file or directory that the system does not let us read."""
    why = (error.strerror or type(error).__name__).lower()
    return InputError(path, f"cannot be read: {why}", "check the path and its permissions")


def damaged(path: Path, detail: str) -> InputError:
    """Return the error for bytes that end too early or contradict themselves.

    Args:
        path: the file.
        detail: what was seen, a few words.
    """
    return InputError(
        path,
        f"is truncated or damaged ({detail})",
        "copy it again from its source, or take another checkpoint",
    )


def summary(error: BaseException) -> str:
    """Return the first line of a library's error message, short enough to stand inside a line."""
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    return first if len(first) <= 120 else first[:117] + "..."


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise InputError(path, "does not exist", "check the path") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # a null byte in the name
        raise InputError(path, "is not a possible file name", "check the path") from error
