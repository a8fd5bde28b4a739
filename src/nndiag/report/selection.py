"""Which rows to show and which runs of rows to fold, when there are more than anybody reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nndiag.report.numbers import counted


@dataclass(frozen=True)
class Fold:
    """A run of rows that is not shown: ``count`` of them from ``first`` on."""

    count: int
    first: int
    healthy: bool = True

    def say(self, noun: str) -> str:
        """Return e.g. ``"37 healthy layers"``, or ``"37 more layers"`` where not all of them are healthy."""
        return counted(self.count, f"{'healthy' if self.healthy else 'more'} {noun}")


def folded(count: int, wanted: Collection[int], unhealthy: Collection[int] = ()) -> list[int | Fold]:
    """Return the rows ``0 … count-1`` in order, runs of unwanted ones of two or more as one :class:`Fold`."""
    rows: list[int | Fold] = []
    for index in range(count):
        if index in wanted:
            rows.append(index)
            continue
        healthy = index not in unhealthy
        if rows and isinstance(last := rows[-1], Fold):
            rows[-1] = Fold(last.count + 1, last.first, last.healthy and healthy)
        else:
            rows.append(Fold(1, index, healthy))
    return [row.first if isinstance(row, Fold) and row.count == 1 else row for row in rows]
