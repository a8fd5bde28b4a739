"""A file of unknown origin, opened for reading, with every way in which that fails said in one line."""

from __future__ import annotations

import math
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from nndiag.errors import InputError


class NoWeightsError(InputError):
    """A file that can be read but holds no weights, such as an optimiser's state."""


class Watched:
    """A regular, non-empty file, open for reading at any place, and watched that it stays the same.

    It is closed when nothing refers to it any more.

    Args:
        path: the file.

    Raises:
        InputError: it is missing, unreadable, empty, or no file.
    """

    def __init__(self, path: Path) -> None:
        before = _stat(path)
        if stat.S_ISDIR(before.st_mode):
            raise InputError(path, "is a directory where a checkpoint file is meant", "name a file in it")
        if not stat.S_ISREG(before.st_mode):
            raise InputError(path, "is not a regular file", "copy the checkpoint into a file first")
        if before.st_size == 0:
            raise InputError(path, "is empty (0 bytes)", "copy it again, or take an earlier checkpoint")
        self.path, self.size = path, before.st_size
        self._written = before.st_mtime_ns
        try:
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise unreadable(path, error) from error
        # not at the interpreter's exit: a thread may still be reading
        weakref.finalize(self, os.close, self.descriptor).atexit = False

    def check_unchanged(self) -> None:
        """Make sure that the file is as it was when it was opened.

        Raises:
            InputError: it is not.
        """
        after = os.fstat(self.descriptor)
        if (after.st_size, after.st_mtime_ns) != (self.size, self._written):
            raise changed(self.path)

    def read(self, offset: int, count: int) -> bytearray:
        """Return so many bytes from a place in the file; memory is taken only for bytes that are there.

        Raises:
            InputError: the file ends before, or cannot be read.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise damaged(self.path, f"{count} bytes at {offset} of a file of {self.size}")
        found = bytearray(count)
        self.read_into(offset, memoryview(found))
        return found

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return a contiguous tensor of which the values lie at a place in the file.

        Raises:
            InputError: the file ends before, or cannot be read.
        """
        self._check(offset, math.prod(shape) * dtype.itemsize)
        found = torch.empty(shape, dtype=dtype)
        self.fill(offset, found)
        return found

    def fill(self, offset: int, tensor: Tensor) -> None:
        """Put the values that lie at a place in the file into a contiguous tensor.

        Raises:
            InputError: the file ends before, or cannot be read.
        """
        self._check(offset, tensor.nbytes)
        if tensor.nbytes:
            self.read_into(offset, tensor.view(-1).view(torch.uint8).numpy().data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a buffer with the bytes at a place in the file.

        Raises:
            InputError: the file ends before, or cannot be read.
        """
        while view.nbytes:
            try:
                count = os.preadv(self.descriptor, [view], offset)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not count:
                raise changed(self.path)
            view, offset = view[count:], offset + count

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or offset + count > self.size:
            raise damaged(self.path, f"a tensor of {count} bytes at {offset} of a file of {self.size}")


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
    watched = Watched(path)
    with os.fdopen(os.dup(watched.descriptor), "rb") as file:
        yield file
        watched.check_unchanged()


def size_of(file: BinaryIO) -> int:
    """Return the length of an open file in bytes."""
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size


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


def changed(path: Path) -> InputError:
    """Return the error for a file that is not the one any more that was opened."""
    return InputError(path, "changed while it was read", "wait until it is written, then try again")


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
