"""One pass over a layer's parameters, a tile at a time: all that the weights level needs of a tensor of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nndiag.checkpoint.lazy import LazyTensors
from nndiag.measures.directions import WIDTH, projected, unit
from nndiag.replay.kinds import Layer, Slot

TILE = 1 << 18
"""Numbers taken at a time: they stay in the processor's cache."""
DIRECTIONS = 2
_WIDEST = 1 << 14
ORDINARY = (1e-15, 1e15)
"""Norms of rows of which single precision holds the squares."""
_SHORTEST, _LONGEST = 32, 128


class StoredRows:
    """The rows of one matrix or kernel in a file, ``(nodes, width)``, read in the parts that are asked for.

    The file holds row after row, and no more of it than a tile is in memory.
    """

    def __init__(self, tensors: LazyTensors, name: str, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._tensors, self._name = tensors, name

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: Tensor | tuple[slice, slice]) -> Tensor:
        """Return some rows whole, by their numbers, or a rectangle of neighbouring rows and columns."""
        width = self.shape[1]
        if isinstance(place, Tensor):
            return torch.stack([self._read(row * width, width) for row in place.tolist()])
        first, last, _ = place[0].indices(len(self))
        left, right, _ = place[1].indices(width)
        if right - left == width:
            return self._read(first * width, (last - first) * width).view(last - first, width)
        return torch.stack([self._read(row * width + left, right - left) for row in range(first, last)])

    def _read(self, first: int, count: int) -> Tensor:
        part = self._tensors.read_part
        assert part is not None
        return part(self._name, first, count)


Table = Tensor | StoredRows


def _table(slot: Slot, tensors: Mapping[str, Tensor]) -> Table:
    rows_lie_in_order = slot.along_first and slot.outer == 1 and slot.inner == 1 and slot.rest is None
    if isinstance(tensors, LazyTensors) and tensors.read_part is not None and rows_lie_in_order:
        return StoredRows(tensors, slot.parameter, (slot.nodes, slot.width))
    return slot.rows(tensors[slot.parameter].detach())


@dataclass(frozen=True)
class NodeRows:
    """The parameters of a layer's nodes, as views of the tensors that hold them.

    Every part is ``(nodes, width)``; a node's row is all of them side by side, weights first.
    """

    weights: tuple[Table, ...]
    biases: tuple[Table, ...] = ()

    @classmethod
    def of(cls, layer: Layer, tensors: Mapping[str, Tensor]) -> NodeRows:
        """Return the rows of a layer, from tensors by parameter name."""
        return cls(
            tuple(_table(slot, tensors) for slot in layer.weights),
            tuple(_table(slot, tensors) for slot in layer.biases),
        )

    @classmethod
    def split(cls, rows: Tensor, weights: int) -> NodeRows:
        """Return ``(nodes, size)`` rows of which the first so many entries are weights."""
        rows = rows.detach()
        return cls((rows[:, :weights],), (rows[:, weights:],) if rows.shape[1] > weights else ())

    @property
    def parts(self) -> tuple[Table, ...]:
        """Weights and biases."""
        return self.weights + self.biases

    @property
    def nodes(self) -> int:
        """How many rows there are."""
        return len(self.parts[0])

    @property
    def size(self) -> int:
        """Entries of one row."""
        return sum(part.shape[1] for part in self.parts)

    @property
    def bias(self) -> Tensor | None:
        """The one bias of every node, where it has just one."""
        single = len(self.biases) == 1 and self.biases[0].shape[1] == 1
        return self.biases[0][:, 0:1].flatten() if single else None

    def take(self, nodes: Tensor) -> Tensor:
        """Return some rows whole, as float64 on the CPU."""
        return torch.cat([part[nodes].cpu().double() for part in self.parts], dim=1)


@dataclass(frozen=True)
class Sketch:
    """Sums over a node's row, each ``(nodes,)`` or ``(nodes, DIRECTIONS)``, float64 on the CPU.

    ``directions`` are sketches of the unit weight vectors (``measures.directions``).

    ``projections`` are products with random directions of expected length 1: rows that are nearly equal have
    nearly equal ones.
    """

    weight_norm: Tensor
    parameter_norm: Tensor
    nonfinite: Tensor
    projections: Tensor
    directions: Tensor


def sketch(rows: NodeRows) -> Sketch:
    """Return the sums of every row, reading every number once."""
    of_weights, turned = _sums(rows.weights, rows.nodes)
    of_biases, shifted = _sums(rows.biases, rows.nodes)
    squares = of_weights + of_biases
    return Sketch(
        weight_norm=of_weights.sqrt(),
        parameter_norm=squares.sqrt(),
        nonfinite=_nonfinite(rows, squares),
        projections=torch.cat([turned, shifted], dim=1) @ _directions() / math.sqrt(rows.size),
        directions=unit(turned, of_weights.sqrt(), sum(part.shape[1] for part in rows.weights)),
    )


def _nonfinite(rows: NodeRows, squares: Tensor) -> Tensor:
    """Return how many numbers of every row are not finite; only rows of which the sum is not are looked at again."""
    found = torch.zeros(rows.nodes, dtype=torch.int64)
    suspicious = torch.nonzero(~torch.isfinite(squares)).flatten()
    step = max(TILE // max(rows.size, 1), 1)
    for first in range(0, len(suspicious), step):
        some = suspicious[first : first + step]
        found[some] = (~torch.isfinite(rows.take(some))).sum(dim=1)
    return found


def _sums(parts: tuple[Table, ...], nodes: int) -> tuple[Tensor, Tensor]:
    """Return the sum of squares ``(nodes,)`` and the sketch ``S w``, ``(nodes, 16)``, of rows in some parts."""
    squares = torch.zeros(nodes, dtype=torch.float64)
    turned = torch.zeros(nodes, WIDTH, dtype=torch.float64)
    count, before = sum(part.shape[1] for part in parts), 0
    for part in parts:
        for some, column, tile in _tiles(part):
            found = _squares(tile)
            if found is None:
                tile = tile.double()
                found = torch.linalg.vector_norm(tile, dim=1).square()
            squares[some] += found
            turned[some] += projected(tile, before + column, count)
        before += part.shape[1]
    return squares, turned


def _squares(tile: Tensor) -> Tensor | None:
    """Return the sums of squares of rows in single precision, to some 1e-8, as float64; ``None`` where that is not
    exact enough.

    Each is added up from short stretches, in doubles; that takes half the time of doing all of it in doubles.
    """
    stretch = math.gcd(tile.shape[1], _LONGEST)
    if tile.dtype != torch.float32 or stretch < _SHORTEST:
        return None
    parts = torch.linalg.vector_norm(tile.reshape(len(tile), -1, stretch), dim=2)
    norms = torch.linalg.vector_norm(parts, dim=1, dtype=torch.float64)
    least, most = (value.item() for value in norms.aminmax())
    return norms.square() if ORDINARY[0] < least and most < ORDINARY[1] else None


def _tiles(part: Table) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield tiles with their rows and first column, on the CPU: doubles as they are, all else in single precision."""
    columns = max(min(part.shape[1], _WIDEST), 1)
    rows = max(TILE // columns, 1)
    for first in range(0, len(part), rows):
        nodes = slice(first, first + rows)
        for column in range(0, part.shape[1], columns):
            tile = part[nodes, column : column + columns]
            exact = torch.float64 if tile.dtype == torch.float64 else torch.float32
            yield nodes, column, tile.to("cpu", exact)


@cache
def _directions() -> Tensor:
    """Return random directions in the sketches of weights and biases: such in their rows, and no pass of their own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * WIDTH, DIRECTIONS, dtype=torch.float64, generator=generator)
