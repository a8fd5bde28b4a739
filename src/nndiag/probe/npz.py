"""Arrays from ``.npz`` archives, compressed or not. Nothing is unpickled; sizes are checked first."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nndiag.checkpoint.source import opened, size_of
from nndiag.config.callables import reason
from nndiag.errors import InputError, NndiagError

LARGEST = 64 * 2**30
"""Bytes that an archive may claim to unpack to."""
DENSEST = 100
"""How many times its own size; zeros alone unpack to a thousand times theirs."""
FREE = 64 * 2**20
"""Bytes to unpack to whatever the size."""


@dataclass(frozen=True)
class Lazy(Mapping[str, object]):
    """Names that are known, and a function that reads one of them."""

    names: tuple[str, ...]
    read: Callable[[str], object]

    def __getitem__(self, name: str) -> object:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_npz(path: Path) -> Mapping[str, object]:
    """Return the arrays of an ``.npz`` file, compressed or not; arrays of Python objects are refused, never
    unpickled.

    Raises:
        InputError: the file is damaged, changes, holds a name twice, or claims to unpack to more than ``LARGEST``
            bytes, or to more than ``DENSEST`` times its own size.
    """
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            packed = size_of(file)
    except NndiagError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    claimed = sum(entry.file_size for entry in entries)
    if claimed > LARGEST:
        sizes = f"{claimed / 2**30:,.0f} GiB, more than {LARGEST // 2**30}"
        raise InputError(path, f"is refused: it unpacks to {sizes}", "save fewer samples")
    if claimed > FREE + DENSEST * packed:
        sizes = f"{claimed:,} bytes, {claimed // packed:,} times its size"
        raise InputError(path, f"is refused: it unpacks to {sizes}", "save it uncompressed (numpy.savez)")
    names = tuple(entry.filename.removesuffix(".npy") for entry in entries)
    files = dict(zip(names, (entry.filename for entry in entries), strict=True))
    if len(files) < len(names):
        raise InputError(path, "is refused: it holds a name twice", "save it again")
    return Lazy(names, lambda name: _read_npy(path, files[name], name))


def _read_npy(path: Path, entry: str, name: str) -> np.ndarray[Any, Any]:
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            with archive.open(entry) as stream, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shape, dtype = _npy_header(stream)
                claimed = math.prod(shape) * dtype.itemsize
                held = archive.getinfo(entry).file_size
            if dtype.hasobject:
                raise InputError(
                    path, f"is refused: {name} holds Python objects", "save plain numeric arrays"
                )
            if claimed > held:
                raise InputError(
                    path, f"is refused: {name} claims {claimed:,} bytes, holds {held:,}", "save it again"
                )
            with archive.open(entry) as stream, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.lib.format.read_array(stream, allow_pickle=False)
    except NndiagError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array without reading it."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(path, f"is truncated or damaged ({reason(error)[:120]})", "save the probe again")
