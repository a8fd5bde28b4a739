"""Places of axes that go together: removing one of them removes all of its class.

Every place along every axis of every parameter is an *atom*. A function that joins two tensors place by place (an
addition, a product, the two sides of a matrix product) makes one class of the atoms that it joins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

STAYS = 0
"""The atom of what is never removed: the places of the network's inputs."""


class Atoms:
    """Classes of atoms, each perhaps fixed for a reason."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._fixed: dict[int, str] = {STAYS: "it belongs to an input of the network"}

    def fresh(self, count: int) -> Ids:
        """Return so many new atoms, each a class of its own."""
        first = len(self._parent)
        made = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, made])
        return made

    def roots(self, ids: Ids) -> Ids:
        """Return the representative of each atom's class."""
        found = ids
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[ids] = found
        return found

    def join(self, some: Ids, others: Ids, reason: str) -> None:
        """Make one class of the atoms at each place of two arrays; joined to what stays, an atom is fixed."""
        a, b = self.roots(some), self.roots(others)
        unlike = a != b
        if not unlike.any():
            return
        for one, other in np.unique(np.stack([a[unlike], b[unlike]], axis=1), axis=0):
            self._join(int(one), int(other), reason)

    def fix(self, ids: Ids, reason: str) -> None:
        """Say that atoms cannot be removed; the first reason stands."""
        for root in np.unique(self.roots(ids)):
            self._fixed.setdefault(int(root), reason)

    def why_fixed(self, atom: int) -> str | None:
        """Return why an atom cannot be removed; ``None`` where nothing forbids it."""
        return self._fixed.get(int(self.roots(np.array([atom]))[0]))

    def free(self, ids: Ids) -> NDArray[np.bool_]:
        """Return which atoms nothing forbids to remove."""
        fixed = np.fromiter(self._fixed, dtype=np.int64)
        return ~np.isin(self.roots(ids), fixed)

    def _join(self, one: int, other: int, reason: str) -> None:
        first, second = (int(r) for r in self.roots(np.array([one, other])))
        if first == second:
            return
        low, high = min(first, second), max(first, second)
        if low == STAYS:
            self._fixed.setdefault(high, reason)
            return
        self._parent[high] = low
        if high in self._fixed:
            self._fixed.setdefault(low, self._fixed[high])
