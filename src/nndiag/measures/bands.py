"""Large tables cut into tiles that fit into the processor's cache, and the tiles of neighbouring rows put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.measures.stored_rows import Table, reading_of

TILE = 1 << 18
"""Numbers taken at a time: they stay in the processor's cache."""
_WIDEST = 1 << 14
_TILES = 64
"""Tiles of whole rows that are looked at together."""
_SHORTEST, _LONGEST = 32, 128


@dataclass(frozen=True)
class Band:
    """Neighbouring rows of a table, or some columns of them, that are read in tiles of some rows each.

    ``stretch`` is how many numbers are squared and added in single precision; 0 where that takes doubles.
    """

    rows: slice
    columns: slice
    step: int
    stretch: int
    read: Callable[[slice, slice], Tensor]

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def width(self) -> int:
        """How many columns there are."""
        return int(self.columns.stop - self.columns.start)

    def places(self) -> Iterator[slice]:
        """Yield the rows of each tile, counted from those of the band."""
        for first in range(0, len(self), self.step):
            yield slice(first, min(first + self.step, len(self)))

    def tile(self, place: slice) -> Tensor:
        """Return a tile, which holds until the next one is asked for: on the CPU, all but doubles as float32."""
        start = self.rows.start
        tile = self.read(slice(start + place.start, start + place.stop), self.columns)
        return tile.to("cpu", torch.float64 if tile.dtype == torch.float64 else torch.float32)


def bands(table: Table) -> Iterator[Band]:
    """Yield the bands of a table: of many tiles where a tile holds rows whole."""
    count, width = table.shape
    columns = max(min(width, _WIDEST), 1)
    step = max(TILE // columns, 1)
    height = step if columns < width else step * _TILES
    read = reading_of(table)
    for first in range(0, count, height):
        for left in range(0, width, columns):
            right = min(left + columns, width)
            stretch = math.gcd(right - left, _LONGEST)
            rough = table.dtype != torch.float64 and stretch >= _SHORTEST
            yield Band(
                slice(first, min(first + height, count)),
                slice(left, right),
                step,
                stretch if rough else 0,
                read,
            )
