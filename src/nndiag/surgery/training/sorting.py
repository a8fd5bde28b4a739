"""Which treatment can be carried out in which way: decided before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from nndiag.remedies.plan import Treatment
from nndiag.replay.heads import heads_of
from nndiag.surgery.training.hushed import hushed
from nndiag.surgery.training.record import Left
from nndiag.surgery.training.reinitialising import Heard, Restart, entries_of, folds_exactly
from nndiag.surgery.training.ward import Ward
from nndiag.surgery.training.warming import bias_of

CONSTANT = 1e-9
"""Range of a unit's output, relative to the largest number that arrives beside it, up to which it is a constant."""
WHISPERS = "it fires, and its outgoing weights are as good as zero already: training raises them"
"""Why a node is not started anew that was, or that the network hears no better than one that was."""
WEAK = frozenset(["ND304", "ND204", "ND401"])
"""Findings of nodes that fire, which they have as long as nobody listens."""
_OF_A_HEAD = "a query, key or value goes on into its whole head: no weight after it was seen to be its own"
_REPEATS = frozenset(["ND104", "ND206"])

Case = tuple[Treatment, Restart]


@dataclass
class Sorted:
    """Treatments by the way in which they are carried out.

    ``exact`` restarts leave the function as it is, ``measured`` ones may change it, ``broken`` ones are of nodes in a
    network whose outputs are not finite. ``pairs`` are queries, each with its key, of which both have collapsed: no
    gradient reaches either. ``silent`` are dead nodes whose outgoing weights are not theirs alone: only their biases
    can be raised.
    """

    exact: list[Case] = field(default_factory=list)
    measured: list[Case] = field(default_factory=list)
    broken: list[Case] = field(default_factory=list)
    silent: list[Treatment] = field(default_factory=list)
    pairs: list[tuple[Treatment, Treatment]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def sort_restarts(ward: Ward, treatments: Iterable[Treatment], finite: bool) -> Sorted:
    """Sort the treatments that start nodes anew; which of them leave the function as it is says ``split_exact``."""
    found = Sorted()
    seen: set[tuple[str, int]] = set()
    cases = [(treatment, _case(ward, treatment)) for treatment in treatments]
    weak = {case.layer for treatment, case in cases if treatment.code in WEAK and isinstance(case, Restart)}
    quiet = hushed(ward, weak)
    gradients = cache(lambda: ward.replay(gradients=True).gradients)
    for treatment, case in cases:
        if isinstance(case, Left):
            found.left.append(case)
            continue
        if (case.layer, case.node) in seen:
            continue  # a unit and the channel that scales it are started together
        paths = ward.paths[case.layer]
        if treatment.code in WEAK and case.layer in quiet and bool(quiet[case.layer][case.node]):
            found.left.append(Left(treatment, WHISPERS))
        elif paths.closes(case.node) or (not finite and treatment.code in ("ND101", "ND103")):
            seen.add((case.layer, case.node))
            (found.measured if finite else found.broken).append((treatment, case))
        elif treatment.code == "ND201" and bias_of(ward, case.layer) is not None:
            found.silent.append(treatment)
        else:
            found.left.append(Left(treatment, _why_not(ward, case, gradients)))
    chosen = {(case.layer, case.node) for _, case in (*found.measured, *found.broken)}
    for group in (found.measured, found.broken):
        group[:] = [(treatment, _without_lost_twin(case, chosen)) for treatment, case in group]
    if finite:
        _pair_up(ward, found)
    return found


def _pair_up(ward: Ward, found: Sorted) -> None:
    """Take queries and keys that have collapsed together out of what is left."""
    stuck: dict[tuple[str, int], Left] = {}
    for left in found.left:
        layer, index = left.treatment.layer, left.treatment.index
        shared = ward.paths[layer].shared_by(index) if layer in ward.paths and index is not None else None
        if index is not None and shared is not None and left.reason == shared.reason:
            stuck[layer, index] = left
    for (layer, index), query in stuck.items():
        shared = ward.paths[layer].shared_by(index)
        key = (
            stuck.get((layer, index + shared.partner)) if shared is not None and shared.partner > 0 else None
        )
        if key is not None and query.treatment.code == key.treatment.code == "ND102":
            found.pairs.append((query.treatment, key.treatment))
            found.left.remove(query)
            found.left.remove(key)


def split_exact(ward: Ward, cases: Iterable[Case], heard: Heard) -> tuple[list[Case], list[Case]]:
    """Return the restarts that leave the function as it is, and the others.

    It stays where the node puts out one number that the bias after it can take over, where its twin takes its part
    over, and where nothing downstream depends on it.
    """
    exact: list[Case] = []
    rest: list[Case] = []
    for treatment, case in cases:
        held = treatment.code == "ND304" or (
            (treatment.code in _REPEATS and case.twin is not None) or _is_constant(ward, case, heard)
        )
        (exact if held else rest).append((treatment, case))
    return exact, rest


def _case(ward: Ward, treatment: Treatment) -> Restart | Left:
    """Return the unit to start anew; for the channel of a normalisation the unit that it scales."""
    if treatment.index is None or treatment.layer not in ward.layers:
        return Left(treatment, "its layer is not known")
    if treatment.layer in ward.paths:
        return Restart(treatment.layer, treatment.index, treatment.twin)
    for name, paths in ward.paths.items():
        norm = next((norm for norm in paths.norms if norm.layer == treatment.layer), None)
        if (
            norm is not None
            and norm.start <= treatment.index < norm.start + ward.layers[name].nodes * norm.inner
        ):
            return Restart(name, (treatment.index - norm.start) // norm.inner)
    return Left(treatment, f"which weights listen to a {ward.layers[treatment.layer].label} is not known")


def _why_not(ward: Ward, case: Restart, gradients: Callable[[], Mapping[str, Tensor]]) -> str:
    """Return why a node cannot be started anew; for a query or key whether training can raise it by itself."""
    paths = ward.paths[case.layer]
    shared = paths.shared_by(case.node)
    if paths.escape is not None and case.layer in heads_of(ward.model):
        return _OF_A_HEAD
    if shared is None or paths.is_output:
        return paths.open_because(case.node)
    own, other = (
        any(slot.rows(gradients()[slot.parameter])[node].any() for slot in ward.layers[case.layer].slots)
        for node in (case.node, case.node + shared.partner)
    )
    name = "key" if shared.partner > 0 else "query"
    if own:
        return f"a gradient reaches it through the {name} that it is multiplied with: training raises it"
    if other:
        return (
            f"the {name} that it is multiplied with is as good as zero: a gradient reaches that and raises it"
        )
    return shared.reason


def _without_lost_twin(case: Restart, chosen: set[tuple[str, int]]) -> Restart:
    """Forget a twin that starts anew itself."""
    lost = case.twin is not None and (case.layer, case.twin) in chosen
    return Restart(case.layer, case.node) if lost else case


def _is_constant(ward: Ward, case: Restart, heard: Heard) -> bool:
    for outlet in ward.paths[case.layer].outlets:
        arrival = heard.arrivals[outlet.weight]
        own = entries_of(outlet, case.node, arrival)
        scale = torch.maximum(arrival.largest.abs(), arrival.least.abs()).max()
        if float((own.largest - own.least).max()) > CONSTANT * float(scale):
            return False
        if not folds_exactly(outlet, own.mean):
            return False
    return True
