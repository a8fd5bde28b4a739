"""The linear assignment problem: a column for each row, every column once, the sum of costs least.

Source: Jonker and Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse linear assignment
problems": rows bid for columns first, which settles most of them, and shortest augmenting paths settle the rest. That
is exact; their time grows with the cube. Above ``EXACT`` rows the rest take what is cheapest of what is left, and the
prices of the bids bound how far that may be from the least (linear programming duality). Costs are asked for a row at
a time, so that the matrix of a wide layer need not be held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nndiag.comparing.run import Floats

Row = Callable[[int], Floats]

EXACT = 1024
"""Rows up to which the sum is the least."""

_FREE = -1
_ROUNDS = 4
"""Times that the rows without a column bid, each no more often than there are rows, before paths are searched."""


@dataclass(frozen=True)
class Assignment:
    """``columns`` has the column of each row; the sum of its costs is above the least by ``excess`` of it at most."""

    columns: NDArray[np.int64]
    excess: float


def assignment(n: int, row: Row, exact: int = EXACT) -> Assignment:
    """Return for each of ``n`` rows the column assigned to it.

    Args:
        n: rows, and columns.
        row: the costs of a row by its index, ``(n,)``, finite and none below 0; the same at every call.
        exact: rows up to which the sum has to be the least.
    """
    column_of, row_of = np.full(n, _FREE), np.full(n, _FREE)
    prices = np.zeros(n)
    free = list(range(n))
    for _ in range(_ROUNDS if n > 1 else 0):
        free = _bid(free, row, prices, column_of, row_of)
    if n <= exact:
        for start in free:
            _augment(start, row, prices, column_of, row_of)
        return Assignment(column_of, 0.0)
    for start in free:
        column = int(np.where(row_of == _FREE, row(start), np.inf).argmin())
        column_of[start], row_of[column] = column, start
    return Assignment(column_of, _excess(row, prices, column_of))


def _excess(row: Row, prices: Floats, column_of: NDArray[np.int64]) -> float:
    """Return the share of the sum above ``Σ_i min_j (c_ij − v_j) + Σ_j v_j``, which no assignment is below."""
    total, bound = 0.0, float(prices.sum())
    for here, column in enumerate(column_of.tolist()):
        costs = row(here)
        total += float(costs[column])
        bound += float((costs - prices).min())
    return max(total - bound, 0.0) / total if total > 0 else 0.0


def _bid(
    free: list[int], row: Row, prices: Floats, column_of: NDArray[np.int64], row_of: NDArray[np.int64]
) -> list[int]:
    """Give free rows their cheapest columns; return those that are free after that.

    A row raises the price of its column until its second choice is as good: whoever held it must look anew.
    """
    waiting, left, bids = free[::-1], [], 0
    while waiting:
        here = waiting.pop()
        bids += 1
        costs = row(here) - prices
        first, second = np.argpartition(costs, 1)[:2] if len(costs) > 2 else np.argsort(costs)
        gain = float(costs[second] - costs[first])
        if gain <= 0 and row_of[first] != _FREE:
            first = second
        prices[first] -= max(gain, 0.0)
        before = row_of[first]
        column_of[here], row_of[first] = first, here
        if before != _FREE:
            column_of[before] = _FREE
            if gain > 0 and bids < len(prices):
                waiting.append(int(before))
            else:
                left.append(int(before))
    return left


def _augment(
    start: int, row: Row, prices: Floats, column_of: NDArray[np.int64], row_of: NDArray[np.int64]
) -> None:
    """Give a free row a column along the cheapest path of exchanges, by Dijkstra's search over reduced costs."""
    costs = row(start) - prices
    reached_from = np.full(len(prices), start)
    settled = np.zeros(len(prices), dtype=bool)
    open_costs = costs.copy()
    while True:
        column = int(open_costs.argmin())
        length = costs[column]
        if row_of[column] == _FREE:
            break
        settled[column] = True
        open_costs[column] = np.inf
        owner = int(row_of[column])
        onward = row(owner) - prices
        onward += length - onward[column]
        better = (onward < open_costs) & ~settled
        costs[better] = open_costs[better] = onward[better]
        reached_from[better] = owner
    prices[settled] += costs[settled] - length
    owner = _FREE
    while owner != start:
        owner = int(reached_from[column])
        row_of[column] = owner
        column, column_of[owner] = int(column_of[owner]), column
