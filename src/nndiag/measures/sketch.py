"""One pass over a layer's parameters, a tile at a time: all that the weights level needs of a tensor of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nndiag.measures.bands import TILE, Band, bands
from nndiag.measures.directions import WIDTH, directions_of, unit
from nndiag.measures.stored_rows import Table, table_of
from nndiag.replay.kinds import Layer

DIRECTIONS = 2
ORDINARY = (1e-15, 1e15)
"""Norms of rows of which single precision holds the squares."""


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
            tuple(table_of(slot, tensors) for slot in layer.weights),
            tuple(table_of(slot, tensors) for slot in layer.biases),
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
    """Return the sums of every row, reading every number once, and a second time beside rows of zeros and the like."""
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
        for band in bands(part):
            first = before + band.columns.start
            more, further = (_in_singles if band.stretch else _in_doubles)(band, first, count)
            squares[band.rows] += more
            turned[band.rows] += further
        before += part.shape[1]
    return squares, turned


def _in_singles(band: Band, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the sums of squares of rows, to some 1e-8, and their shares of ``S w``, both float64; in single precision
    where that is exact enough.

    Squares are added up from short stretches, in doubles; that takes half the time of doing all of it in doubles. A
    tile costs two calls, for they take as long as the arithmetic.
    """
    lengths = torch.empty(len(band), band.width // band.stretch)
    turned = torch.empty(len(band), WIDTH)
    directions = directions_of(first, band.width, count, torch.float32)
    for place in band.places():
        tile = band.tile(place)
        stretches = tile.reshape(len(tile), -1, band.stretch)
        torch.linalg.vector_norm(stretches, dim=2, out=lengths[place])
        torch.mm(tile, directions, out=turned[place])
    norms = torch.linalg.vector_norm(lengths, dim=1, dtype=torch.float64)
    squares, exact = norms.square(), turned.double()
    for place in band.places():
        least, most = (value.item() for value in norms[place].aminmax())
        if not (ORDINARY[0] < least and most < ORDINARY[1]):
            squares[place], exact[place] = _doubled(band.tile(place), first, count)
    return squares, exact


def _in_doubles(band: Band, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return what ``_in_singles`` does, in double precision."""
    found = [_doubled(band.tile(place), first, count) for place in band.places()]
    squares, turned = zip(*found, strict=True)
    return torch.cat(squares), torch.cat(turned)


def _doubled(tile: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    exact = tile.double()
    directions = directions_of(first, exact.shape[1], count, torch.float64)
    return torch.linalg.vector_norm(exact, dim=1).square(), exact @ directions


@cache
def _directions() -> Tensor:
    """Return random directions in the sketches of weights and biases: such in their rows, and no pass of their own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * WIDTH, DIRECTIONS, dtype=torch.float64, generator=generator)
