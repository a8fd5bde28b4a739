"""Tensors that lie in a mapped file: each is let go of when the next one is asked for.

Pages of a mapping that were read stay with the process and count as its memory. Told that they are not needed, the
system takes them back; a tensor that is used again after all is read again.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from functools import cache

from torch import Tensor

from nndiag.checkpoint.lazy import LazyTensors

_LARGE = 1 << 20


def one_at_a_time(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Return the same tensors, of which only the last one asked for stays in memory."""
    last: list[Tensor] = []

    def read(name: str) -> Tensor:
        for tensor in last:
            _let_go(tensor)
        last[:] = [tensors[name]]
        return tensors[name]

    return LazyTensors(tensors, read)


def _let_go(tensor: Tensor) -> None:
    storage = tensor.untyped_storage()
    advise = _advise()
    if advise is None or storage.nbytes() < _LARGE:
        return
    # whole pages inside the storage: its neighbours share the others
    first = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    count = (storage.data_ptr() + storage.nbytes() - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if count > 0:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(count), mmap.MADV_DONTNEED)


@cache
def _advise() -> Callable[..., int] | None:
    """Return the system's ``madvise``, where it has one."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    return getattr(ctypes.CDLL(None), "madvise", None)
