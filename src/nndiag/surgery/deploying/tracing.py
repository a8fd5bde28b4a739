"""One look at a network: which places go together, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nndiag.surgery.deploying.atoms import Atoms, Ids
from nndiag.surgery.deploying.consumers import Consumers, Pair
from nndiag.surgery.deploying.following import Following, Places, plain_functions, run

Batches = Sequence[tuple[Tensor, ...]]

_FEW = 2
"""Samples that show the shapes."""
_ROUNDS = 4
"""Axes that atoms split over several are tried on."""


@dataclass(frozen=True)
class Traced:
    """The atoms of a network's parameters, the sums that read them, the names of the parameters that were used, and the
    classes that were split over several axes (heads), one array of atoms for each time.
    """

    atoms: Atoms
    places: Places
    consumers: Consumers
    used: frozenset[str]
    splits: tuple[Ids, ...]
    choices: dict[int, int]


def trace(model: nn.Module, batches: Batches) -> Traced:
    """Run the probe and follow every parameter's places.

    Args:
        model: in eval mode.
        batches: positional inputs, each ``(batch, ...)``.
    """
    with plain_functions():
        choices = _choices(model, batches[0])
        atoms, consumers = Atoms(), Consumers()
        mode = Following(atoms, Places(model, atoms), consumers, choices)
        for batch in batches:
            run(model, batch, mode)
    splits = tuple(factor for factor, _ in mode.splits.values())
    return Traced(atoms, mode.places, consumers, frozenset(mode.used), splits, choices)


def compare_pairs(
    model: nn.Module, batches: Batches, traced: Traced, pairs: dict[tuple[object, ...], list[Pair]]
) -> None:
    """Measure how pairs of units depend on each other where they are read: ``x_j = s x_i + c``, and how far off."""
    traced.consumers.pairs = pairs
    try:
        with plain_functions():
            for comparing in (False, True):
                traced.consumers.comparing = comparing
                mode = Following(traced.atoms, traced.places, traced.consumers, traced.choices)
                for batch in batches:
                    run(model, batch, mode)
    finally:
        traced.consumers.pairs, traced.consumers.comparing = {}, False


def _choices(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[int, int]:
    """Find on which axis atoms that are split over several can be removed: heads rather than queries, keys, values."""
    choices: dict[int, int] = {}
    few = tuple(x[:_FEW] for x in batch)
    for _ in range(_ROUNDS):
        atoms = Atoms()
        mode = Following(atoms, Places(model, atoms), Consumers(), choices)
        run(model, few, mode)
        stuck = [
            (turn, axes)
            for turn, (factor, axes) in mode.splits.items()
            if choices.get(turn, 0) < axes - 1 and not atoms.free(factor).any()
        ]
        if not stuck:
            break
        for turn, _ in stuck:
            choices[turn] = choices.get(turn, 0) + 1
    return choices
