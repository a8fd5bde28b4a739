"""Which classes of atoms can be removed, and what has to be done for each where it is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nndiag.replay.kinds import Layer, Slot
from nndiag.surgery.deploying.atoms import Ids
from nndiag.surgery.deploying.consumers import Consumer, Pair
from nndiag.surgery.deploying.tracing import Traced

Key = tuple[object, ...]

TOLERANCE = 1e-7
"""Share of the largest result of a sum that leaving a unit out of it may change."""


ULPS = 8
"""So many last digits a constant may vary by."""
_MOST = 2e-6
"""The same as a share of it, for numbers of few digits."""


@dataclass(frozen=True)
class Fold:
    """Add ``amount``, ``(outputs,)`` float64, to a bias or a running mean."""

    name: str
    amount: Tensor


@dataclass(frozen=True)
class Merge:
    """Along an axis of a parameter, add ``slope`` times the entries of one place to those of another."""

    name: str
    axis: int
    places: Tensor
    into: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Removal:
    """What removing one class of atoms takes; ``exact`` where no sum notices it even in its last digit."""

    root: int
    folds: tuple[Fold, ...] = ()
    merges: tuple[Merge, ...] = ()
    exact: bool = True

    @property
    def kind(self) -> str:
        """What it is called."""
        return "merged" if self.merges else "folded" if self.folds else "removed"


class BlockedError(Exception):
    """A class of atoms cannot be removed; the message says why, ``varies`` that what is read there is not constant."""

    def __init__(self, why: str, varies: bool = False) -> None:
        super().__init__(why)
        self.varies = varies


@dataclass
class Readers:
    """Where classes of atoms are read: per root the sums, by key, and the places in each."""

    traced: Traced
    by_root: dict[int, list[tuple[Key, Consumer, Ids]]] = field(default_factory=dict)

    @classmethod
    def of(cls, traced: Traced, roots: Collection[int]) -> Readers:
        """Find them for some roots."""
        made = cls(traced, {root: [] for root in roots})
        wanted = np.fromiter(roots, dtype=np.int64)
        for key, consumer in traced.consumers.found.items():
            factors = [traced.atoms.roots(factor) for factor in consumer.axis]
            seen = np.unique(np.concatenate(factors)) if factors else wanted[:0]
            for root in seen[np.isin(seen, wanted)]:
                hit = np.any([factor == root for factor in factors], axis=0)
                made.by_root[int(root)].append((key, consumer, np.flatnonzero(hit)))
        return made

    def pairs(self, root: int, partner: int) -> dict[Key, Pair]:
        """Return the places of two classes beside each other, for every sum that reads the first.

        Raises:
            BlockedError: some sum does not read both in the same way.
        """
        theirs = {key: places for key, _, places in self.by_root[partner]}
        found = {}
        for key, consumer, places in self.by_root[root]:
            others = theirs.get(key)
            if others is None or len(others) != len(places):
                raise BlockedError(f"{consumer.name} does not read the two alike")
            found[key] = Pair(torch.from_numpy(places), torch.from_numpy(others))
        return found


def node_atoms(traced: Traced, layer: Layer, index: int) -> Ids:
    """Return the atoms that belong to one node of a layer, and to no other of its nodes alone."""
    found = [axis[places] for axis, places in _own_places(traced, layer, index)]
    return np.unique(traced.atoms.roots(np.concatenate(found))) if found else np.zeros(0, dtype=np.int64)


def companions(traced: Traced, layer: Layer, index: int, root: int) -> int:
    """Return how many places of a layer's own axes are of a class, beside those of one node."""
    return sum(
        int((traced.atoms.roots(axis) == root).sum()) - len(places)
        for axis, places in _own_places(traced, layer, index)
    )


def _own_places(traced: Traced, layer: Layer, index: int) -> list[tuple[Ids, Ids]]:
    """Return the axes of a layer's weight that count its nodes, and where a node lies along them."""
    slot = layer.weights[0]
    own = np.unravel_index(_entries(slot)[index].numpy(), slot.shape)
    found = []
    for axis, coordinates in zip(traced.places.axes[slot.parameter], own, strict=True):
        places = np.unique(coordinates)
        if axis is not None and len(places) < len(axis):
            found.append((axis, places))
    return found


@lru_cache(maxsize=1)
def _entries(slot: Slot) -> Tensor:
    """Return the numbers of every node's entries in a parameter, ``(nodes, width)``."""
    return slot.rows(torch.arange(math.prod(slot.shape)).reshape(slot.shape))


def removal(
    readers: Readers,
    root: int,
    pairs: Mapping[Key, Pair],
    tolerance: float = TOLERANCE,
) -> Removal:
    """Say what it takes to remove a class of atoms without a change of what any sum puts out on the probe.

    Args:
        readers: of the class.
        root: the class.
        pairs: measured beside a partner, where it repeats one.
        tolerance: share of the largest result of each sum that may change.

    Raises:
        BlockedError: some sum would notice.
    """
    reason = readers.traced.atoms.why_fixed(root)
    if reason is not None:
        raise BlockedError(reason)
    folds: list[Fold] = []
    merges: list[Merge] = []
    exact = True
    for key, consumer, places in readers.by_root[root]:
        where = torch.from_numpy(places)
        low, high = consumer.low[where], consumer.high[where]
        silent = consumer.weight_size[where] == 0
        if bool((silent | ((low == 0) & (high == 0))).all()):
            continue
        if consumer.weight is None or consumer.outputs is None:
            raise BlockedError(f"it is multiplied with other units ({consumer.operation})")
        edge = tolerance * consumer.scale
        reach = _reach(consumer, where)
        if float((reach * torch.maximum(low.abs(), high.abs())).sum()) <= edge:
            exact = False
        elif _constant(consumer, low, high) or float((reach * (high - low) / 2).sum()) <= edge:
            exact &= bool((low == high).all())
            folds.append(_fold(readers, consumer, where, (low + high) / 2))
        elif key in pairs:
            more, again = _merged(readers, consumer, pairs[key], edge)
            folds += more
            merges.append(again)
            exact = False
        else:
            raise BlockedError(_not_constant(consumer, low, high), varies=True)
    return Removal(root, tuple(folds), tuple(merges), exact)


def _constant(consumer: Consumer, low: Tensor, high: Tensor) -> bool:
    """Whether values differ by rounding alone."""
    share = min(ULPS * consumer.eps, _MOST)
    return bool((high - low <= share * torch.maximum(low.abs(), high.abs())).all())


def _not_constant(consumer: Consumer, low: Tensor, high: Tensor) -> str:
    return f"{consumer.name} reads values from {float(low.min()):.3g} to {float(high.max()):.3g} at its place"


def _reach(consumer: Consumer, where: Tensor) -> Tensor:
    """Return how far the results move with each place, at most, ``(places,)``."""
    assert consumer.weight is not None
    assert consumer.outputs is not None
    chosen = consumer.weight.detach()[where].double().abs()
    others = [a for a in range(1, chosen.dim()) if a != consumer.outputs]
    return (chosen.sum(dim=others) if others else chosen).amax(dim=1)


def _fold(readers: Readers, consumer: Consumer, where: Tensor, values: Tensor) -> Fold:
    """Let the bias of a sum take over constants.

    Raises:
        BlockedError: there is none, or zeros are read beyond the borders.
    """
    shown = f"a constant of {float(values[values.abs().argmax()]):.3g}"
    if consumer.borders:
        raise BlockedError(
            f"it is {shown}, and {consumer.name} reads zeros beyond the borders: no bias is equal to it"
        )
    if consumer.taker is None or _shared(readers, consumer):
        raise BlockedError(
            f"it is {shown}, and {consumer.name} has no bias of its own that could take it over"
        )
    return Fold(consumer.taker.name, consumer.taker.sign * (values @ consumer.columns(where)))


def _shared(readers: Readers, consumer: Consumer) -> bool:
    """Whether another sum has the same bias."""
    assert consumer.taker is not None
    every = readers.traced.consumers.found.values()
    return any(o is not consumer and o.taker and o.taker.name == consumer.taker.name for o in every)


def _merged(readers: Readers, consumer: Consumer, pair: Pair, edge: float) -> tuple[list[Fold], Merge]:
    """Add the outgoing weights of a unit to those of its partner.

    Raises:
        BlockedError: the one is no multiple of the other here.
    """
    assert pair.residual is not None
    slope, offset = pair.line()
    if not float((_reach(consumer, pair.places) * pair.residual).sum()) <= edge:
        raise BlockedError(f"at {consumer.name} it is no multiple of its partner")
    if consumer.parameter is None:
        raise BlockedError(f"the weights of {consumer.operation} are no parameter of their own")
    folds = [_fold(readers, consumer, pair.places, offset)] if bool((offset != 0).any()) else []
    name, axis = consumer.parameter
    start = start_of(readers.traced, consumer)
    return folds, Merge(name, axis, pair.places + start, pair.others + start, slope)


def start_of(traced: Traced, consumer: Consumer) -> int:
    """Return where along its axis of a parameter the weight of a sum begins."""
    assert consumer.parameter is not None
    assert consumer.weight is not None
    name, axis = consumer.parameter
    tensor = traced.places.tensors[name]
    if consumer.weight.shape[0] == tensor.shape[axis]:
        return 0
    offset = (consumer.weight.data_ptr() - tensor.data_ptr()) // tensor.element_size()
    return int(offset // tensor.stride(axis) % tensor.shape[axis])


def writers(traced: Traced, layers: Iterable[Layer]) -> dict[int, set[str]]:
    """Return, by class, the layers whose own units are of it, those aside that only scale units."""
    found: dict[int, set[str]] = {}
    for layer in layers:
        axes = traced.places.axes[layer.weights[0].parameter]
        if len(axes) < 2:
            continue
        units = axes[1] if layer.label == "Conv1D" or "Transpose" in layer.label else axes[0]
        for root in () if units is None else np.unique(traced.atoms.roots(units)):
            found.setdefault(int(root), set()).add(layer.name)
    return found


def all_of_an_axis(traced: Traced, roots: Collection[int]) -> set[int]:
    """Return the roots that have to stay, one for every axis that would otherwise have no place left."""
    wanted, kept = np.fromiter(roots, dtype=np.int64), set[int]()
    for name in sorted(traced.used):
        for axis in traced.places.axes[name]:
            if axis is None:
                continue
            found = traced.atoms.roots(axis)
            if np.isin(found, wanted).all() and not np.isin(found, list(kept)).any():
                kept.add(int(found[0]))
    return kept
