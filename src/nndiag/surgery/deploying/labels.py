"""Which atoms lie along the axes of a tensor, and where they go when its shape changes.

An axis is a tuple of factors, arrays of one atom a place; a place goes when any of its atoms goes. An axis without
factors stays as it is. Flattening ``(C, H·W)`` gives one axis with the atoms of ``C`` repeated; splitting
``(heads · width)`` makes one class of the atoms of each head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nndiag.surgery.deploying.atoms import STAYS, Atoms, Ids

Axis = tuple[Ids, ...]
Choose = Callable[[Ids, tuple[int, ...]], int]
"""Chooses which of several axes keeps atoms that were split over them."""


@dataclass(frozen=True)
class Labels:
    """The axes of a tensor; ``constant`` says that it is made of parameters, buffers and numbers alone."""

    axes: tuple[Axis, ...]
    constant: bool = False

    @classmethod
    def none(cls, dims: int, constant: bool = False) -> Labels:
        """Return the labels of a tensor of which nothing can be removed."""
        return cls(((),) * dims, constant)

    @property
    def bare(self) -> bool:
        """Whether no axis has a factor."""
        return not any(self.axes)


def axis_of(factors: Sequence[Ids]) -> Axis:
    """Return an axis without factors that say nothing."""
    return tuple(factor for factor in factors if factor.any())


def united(atoms: Atoms, one: Axis, other: Axis, reason: str) -> Axis:
    """Return the axis of a result whose places join those of two axes of the same length."""
    if len(one) == len(other) == 1:
        atoms.join(one[0], other[0], reason)
        return one
    rest = list(other)
    for factor in one:
        roots = atoms.roots(factor)
        same = next((i for i, f in enumerate(rest) if np.array_equal(atoms.roots(f), roots)), None)
        if same is not None:
            del rest[same]
            continue
        match = next((i for i, f in enumerate(rest) if _alike(f, factor)), None)
        if match is None:
            atoms.fix(factor, reason)
        else:
            atoms.join(factor, rest.pop(match), reason)
    for factor in rest:
        atoms.fix(factor, reason)
    return one or other


def _alike(one: Ids, other: Ids) -> bool:
    """Whether the atoms of two factors repeat in the same way."""
    return np.array_equal(_pattern(one), _pattern(other))


def _pattern(factor: Ids) -> Ids:
    _, first, inverse = np.unique(factor, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)])


def reshaped(
    atoms: Atoms, axes: Sequence[Axis], before: Sequence[int], after: Sequence[int], choose: Choose
) -> tuple[Axis, ...]:
    """Return the axes of a tensor read row-major into another shape."""
    found: list[Axis] = [()] * len(after)
    for old, new in _runs(before, after):
        factors = _flattened([axes[i] for i in old], [before[i] for i in old])
        sizes = tuple(after[i] for i in new)
        for factor in factors:
            place = _placed(atoms, factor, sizes, choose)
            if place is not None:
                kept, values = place
                found[new[kept]] = (*found[new[kept]], values)
    return tuple(found)


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the shortest runs of old and new axes that hold equally many places; axes of one place belong to none."""
    old = [i for i, size in enumerate(before) if size != 1]
    new = [i for i, size in enumerate(after) if size != 1]
    found, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        first, second = i + 1, j + 1
        left, right = before[old[i]], after[new[j]]
        while left != right:
            if left < right:
                left *= before[old[first]]
                first += 1
            else:
                right *= after[new[second]]
                second += 1
        found.append((old[i:first], new[j:second]))
        i, j = first, second
    return found


def _flattened(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Ids]:
    """Return the factors of several axes read as one, row-major."""
    found = []
    for place, axis in enumerate(axes):
        ahead, behind = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
        found += [np.tile(np.repeat(factor, behind), ahead) for factor in axis]
    return found


def _placed(atoms: Atoms, factor: Ids, sizes: tuple[int, ...], choose: Choose) -> tuple[int, Ids] | None:
    """Return on which of several axes a factor lies, and its atoms there; those of the others are made one class."""
    if len(sizes) == 1:
        return 0, factor
    roots = atoms.roots(factor).reshape(sizes)
    varying = [i for i in range(len(sizes)) if (np.diff(roots, axis=i) != 0).any()]
    if not varying:
        atoms.fix(factor, "it is split into parts")
        return None
    kept = varying[0] if len(varying) == 1 else choose(factor, sizes)
    shown = np.moveaxis(roots, kept, 0).reshape(sizes[kept], -1)
    first = np.repeat(shown[:, :1], shown.shape[1], axis=1)
    atoms.join(first.reshape(-1), shown.reshape(-1), "it is split into parts with what stays")
    return kept, np.ascontiguousarray(shown[:, 0])


def stays(count: int) -> Ids:
    """Return the factor of so many places that stay."""
    return np.full(count, STAYS, dtype=np.int64)
