"""Nodes that have the same weights: found from sketches, and proved on the rows themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nndiag.measures.sketch import NodeRows, Sketch, sketch
from nndiag.records.measured import Floats

DUPLICATE_TOLERANCE = 1e-6
"""Two rows are one where they differ by less than this share of their norm."""

COMPARABLE_ROWS = 8192
"""Layers with more nodes are not searched for repeated rows."""

Pairs = tuple[tuple[int, int], ...]
_PAIRS = 1 << 20
"""Pairs looked at together."""
_NUMBERS = 1 << 22
"""Numbers compared together."""
_ROUNDS = 16
"""Partners that a node is compared with; sketches of different rows are hardly ever alike even once."""


def duplicate_rows(rows: NodeRows, groups: int = 1, sketched: Sketch | None = None) -> tuple[Pairs, Pairs]:
    """Return pairs ``(node, earlier node)`` whose weights and biases are equal to rounding, and those of the other
    nodes that are equal with the sign turned.

    Rows of zeros and rows that are not finite repeat nothing; nor do single numbers, nor nodes of different groups,
    which have inputs of their own.

    Equal rows have equal norms and projections, so that only pairs alike in those are compared in full: that costs
    one pass over the layer instead of a product of the layer with itself.

    Args:
        rows: the layer.
        groups: in how many groups of nodes, each with inputs of its own, it falls.
        sketched: its sketch, where there is one already.
    """
    if rows.size < 2 or groups >= rows.nodes or rows.nodes > COMPARABLE_ROWS:
        return (), ()
    seen = sketched or sketch(rows)
    usable = torch.isfinite(seen.parameter_norm) & (seen.parameter_norm > 0)
    index = torch.nonzero(usable).flatten()
    if len(index) < 2:
        return (), ()
    group = index // (rows.nodes // groups)
    key = torch.column_stack([seen.parameter_norm[index], seen.projections[index], group])
    leaders = _first_of_each(key.numpy())
    own = leaders == np.arange(len(leaders))
    search = _Search(rows, seen, index[own], group[own])
    equal = dict(search.partners(1))
    turned = search.partners(-1)
    # of many copies of a row only the first one was searched for; the others repeat what it repeats, or itself
    copies, nodes = np.flatnonzero(~own), index.numpy()
    proved = equal_in_full(rows, nodes[copies], nodes[leaders[copies]])
    for copy in copies[proved]:
        leader = int(nodes[leaders[copy]])
        equal[int(nodes[copy])] = equal.get(leader, leader)
    return tuple(sorted(equal.items())), tuple(pair for pair in turned if pair[0] not in equal)


def _first_of_each(key: np.ndarray) -> np.ndarray:
    """Return for every row of a table the place of the first row that is the same to the bit."""
    if len(np.unique(key[:, 1])) == len(key):  # the rule, and soon seen
        return np.arange(len(key))
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)])


class _Search:
    """The usable nodes of a layer, sorted by how far they reach along the first direction."""

    def __init__(self, rows: NodeRows, seen: Sketch, index: Tensor, group: Tensor) -> None:
        norms = seen.parameter_norm[index]
        unit = (seen.projections[index] / norms[:, None]).numpy()
        order = np.argsort(np.abs(unit[:, 0]), kind="stable")
        self.rows = rows
        self.index = index.numpy()[order]
        self.norms = norms.numpy()[order]
        self.group = group.numpy()[order]
        self.unit: Floats = unit[order]
        self.by_rank = np.argsort(self.index, kind="stable")
        self.rank = np.argsort(self.by_rank, kind="stable")
        # unit rows less than 2e-6 apart; the directions have length 1 up to a few standard deviations
        self.slack = 8 * DUPLICATE_TOLERANCE

    def partners(self, sign: int) -> Pairs:
        """Return for every node that repeats an earlier one, up to its sign, the pair with the first such one."""
        tried = np.full(len(self.index), -1)  # the last partner that proved to be none
        found: dict[int, int] = {}
        open_ = np.ones(len(self.index), dtype=bool)
        for _ in range(_ROUNDS):
            nearest = self._nearest(sign, tried, open_)
            places = np.flatnonzero(open_ & (nearest < len(self.index)))
            if not len(places):
                break
            others = self.by_rank[nearest[places]]
            proved = equal_in_full(self.rows, self.index[places], self.index[others], sign)
            found.update(
                (int(self.index[a]), int(self.index[b]))
                for a, b in zip(places[proved], others[proved], strict=True)
            )
            tried[places] = nearest[places]
            open_[:] = False
            open_[places[~proved]] = True
        return tuple(sorted(found.items()))

    def _nearest(self, sign: int, tried: np.ndarray, open_: np.ndarray) -> np.ndarray:
        """Return for every node the rank (by index) of the first earlier one that it may repeat, beyond
        those tried.
        """
        rank = self.rank
        nearest = np.full(len(self.index), len(self.index))
        for first, second in self._alike(sign):
            later = np.where(rank[first] > rank[second], first, second)
            earlier = rank[np.where(rank[first] > rank[second], second, first)]
            wanted = open_[later] & (earlier > tried[later])
            np.minimum.at(nearest, later[wanted], earlier[wanted])
        return nearest

    def _alike(self, sign: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the pairs of places whose sketches agree."""
        reach = np.abs(self.unit[:, 0])
        ends = np.searchsorted(reach, reach + self.slack, side="right")
        counts = ends - np.arange(len(ends)) - 1
        start = 0
        while start < len(counts):
            stop = start + max(int(np.searchsorted(np.cumsum(counts[start:]), _PAIRS, side="right")), 1)
            some = counts[start:stop]
            first = np.repeat(np.arange(start, stop), some)
            before = np.repeat(np.cumsum(some) - some, some)
            second = first + 1 + np.arange(len(first)) - before
            close = (np.abs(self.unit[first] - sign * self.unit[second]) < self.slack).all(axis=1)
            close &= np.abs(self.norms[first] / self.norms[second] - 1) < 2 * DUPLICATE_TOLERANCE
            close &= self.group[first] == self.group[second]
            yield first[close], second[close]
            start = stop


def equal_in_full(rows: NodeRows, nodes: np.ndarray, others: np.ndarray, sign: int = 1) -> np.ndarray:
    """Return which nodes equal the others named beside them, up to a sign.

    Args:
        rows: the layer.
        nodes: some nodes.
        others: as many.
        sign: −1 to compare with the others' negatives.
    """
    proved = np.zeros(len(nodes), dtype=bool)
    step = max(_NUMBERS // rows.size, 1)
    for begin in range(0, len(nodes), step):
        some, beside = (rows.take(torch.from_numpy(of[begin : begin + step])) for of in (nodes, others))
        apart = (some - sign * beside).norm(dim=1) / beside.norm(dim=1)
        proved[begin : begin + step] = (apart < DUPLICATE_TOLERANCE).numpy()
    return proved
