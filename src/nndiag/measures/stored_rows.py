"""The rows of a layer's tensors: views of tensors in memory, or parts of a file, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nndiag.checkpoint.lazy import LazyTensors
from nndiag.replay.kinds import Slot


class StoredRows:
    """The rows of one matrix or kernel in a file, ``(nodes, width)``, read in the parts that are asked for.

    The file holds row after row, and no more of it than a tile is in memory.
    """

    def __init__(self, tensors: LazyTensors, name: str, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._tensors, self._name = tensors, name

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers in the file."""
        return self._tensors.specs[self._name].dtype

    def __getitem__(self, place: Tensor | tuple[slice, slice]) -> Tensor:
        """Return some rows whole, by their numbers, or a rectangle of neighbouring rows and columns."""
        if isinstance(place, tuple):
            return self.read(*place, torch.empty(0, dtype=self.dtype))
        found = torch.empty((len(place), self.shape[1]), dtype=self.dtype)
        for row, into in zip(place.tolist(), found, strict=True):
            self._fill(row * self.shape[1], into)
        return found

    def read(self, rows: slice, columns: slice, room: Tensor) -> Tensor:
        """Return a rectangle of neighbouring rows and columns in a tensor that is used again and again: fresh memory
        for every tile takes the system as long as reading it. The room grows where it is too small.
        """
        width = self.shape[1]
        first, last, _ = rows.indices(len(self))
        left, right, _ = columns.indices(width)
        count = (last - first) * (right - left)
        if room.numel() < count:
            room.resize_(count)
        found = room[:count].view(last - first, right - left)
        if right - left == width:
            self._fill(first * width, found)
        else:
            for row, into in zip(range(first, last), found, strict=True):
                self._fill(row * width + left, into)
        return found

    def _fill(self, first: int, tensor: Tensor) -> None:
        fill = self._tensors.fill_part
        assert fill is not None
        fill(self._name, first, tensor)


Table = Tensor | StoredRows


def table_of(slot: Slot, tensors: Mapping[str, Tensor]) -> Table:
    """Return the rows that a slot names, from tensors by parameter name."""
    rows_lie_in_order = slot.in_order and slot.inner == 1
    if isinstance(tensors, LazyTensors) and tensors.fill_part is not None and rows_lie_in_order:
        return StoredRows(tensors, slot.parameter, (slot.nodes, slot.width))
    return slot.rows(tensors[slot.parameter].detach())


def reading_of(table: Table) -> Callable[[slice, slice], Tensor]:
    """Return what reads a rectangle of a table: neighbouring rows and columns, which hold until the next are read."""
    if isinstance(table, StoredRows):
        room = torch.empty(0, dtype=table.dtype)
        return lambda rows, columns: table.read(rows, columns, room)
    return lambda rows, columns: table[rows, columns]
