"""Layers whose trouble lies in another layer: one that nothing gets through cuts off those before and after it.

Gradients of the layers before a dead layer end there, and the layers after it see one constant input. Their
nodes show findings that no action on them can mend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nndiag.records.measured import LayerMeasures
from nndiag.rules.base import Hit
from nndiag.rules.nodes import multiplies, starts_at_zero

Hits = Mapping[str, Sequence[Hit]]

_STOPPING = (("ND102", "has collapsed"), ("ND201", "is dead"), ("ND202", "is saturated"))
"""Findings that stop everything where all nodes of a layer have them, and what the layer is then."""

_FOLLOWING = {
    "after": frozenset(["ND252", "ND301", "ND304", "ND401"]),
    "before": frozenset(
        ["ND201", "ND202", "ND203", "ND204", "ND205", "ND206", "ND251", "ND252", "ND302", "ND401"]
    ),
}
_DROWNED = frozenset(
    "ND201 ND202 ND203 ND204 ND206 ND250 ND251 ND252 ND301 ND302 ND303 ND304 ND350 ND401 ND402 ND404 ND450".split()
)
"""What layers show whose inputs are drowned by one unit that has exploded before them."""
_BEHIND = frozenset(["ND203", "ND204", "ND206", "ND251"])
"""What a layer shows beside that where its outputs are looked at behind the one that stops them."""
_DECIDING = frozenset(["ND102", "ND201", "ND202", "ND304"])

MOSTLY = 0.9
"""Share of a layer's nodes that must be exactly still to say that its inputs are: sums of equal inputs may
differ by rounding."""


@dataclass(frozen=True)
class Blame:
    """What is wrong with another layer, on which side it stands, and which findings follow from it.

    ``code`` is the finding there, ``follow`` the codes of those that follow. ``harmless`` says that nothing is wrong
    there but that it starts at zero, ``channel`` that it is the one node that belongs to this one, ``whole`` that
    they are findings about the whole network.
    """

    layer: str
    side: Literal["before", "after"]
    state: str
    code: str
    follow: frozenset[str]
    harmless: bool = False
    channel: bool = False
    whole: bool = False

    @property
    def sentence(self) -> str:
        """What to add to a message, e.g. ``"layer 4 after it is dead"``."""
        if self.whole:
            return f"layer {self.layer} {self.state}"
        part = ("its channel in " if self.side == "after" else "its unit in ") if self.channel else ""
        return f"{part}layer {self.layer} {self.side} it {self.state}"

    def covers(self, code: str) -> bool:
        """Whether a finding of this code follows from the other layer."""
        return code in self.follow


def blames(layers: Sequence[LayerMeasures], hits: Mapping[str, Hits]) -> dict[str, tuple[Blame, ...]]:
    """Return, by layer, the other layers that its findings follow from.

    Args:
        layers: in the order in which the network has them.
        hits: the node findings of every layer, by layer and code.
    """
    found: dict[str, list[Blame]] = {layer.name: [] for layer in layers}
    stopping, starved = _stopping(layers, hits)
    for place, other in starved.items():
        found[layers[place].name].append(_blame(layers, stopping, place, other, "before"))
    for place, exploded in enumerate(layers):
        if exploded_nodes := len(hits[exploded.name].get("ND103", ())):
            state = (
                f"has {exploded_nodes} node{'s' if exploded_nodes > 1 else ''} whose weights have exploded"
            )
            # layers come in the order in which they were made; those of the outputs always run last
            after = [one for one in layers[:place] if one.is_output]
            for layer in [*layers[place + 1 :], *after]:
                found[layer.name].append(Blame(exploded.name, "before", state, "ND103", _DROWNED))
    for place, layer in enumerate(layers):
        later = [other for other in stopping if other > place and _in_the_way(layers[other], layer)]
        if later and place not in stopping and _unheard(layer):
            found[layer.name].append(_blame(layers, stopping, place, min(later), "after"))
    return {name: tuple(reasons) for name, reasons in found.items()}


def stops_everything(layers: Sequence[LayerMeasures], hits: Mapping[str, Hits]) -> Blame | None:
    """Return the layer for which the outputs are the same on all samples: nothing gets through it to them.

    It is the one that starves an output layer of its inputs, else the first that multiplies its inputs and lets nothing
    through, if one does. Its code is that of the layer's own finding.
    """
    stopping, starved = _stopping(layers, hits)
    of_outputs = [other for place, other in starved.items() if layers[place].is_output]
    first = [place for place, stop in stopping.items() if multiplies(layers[place]) and not stop.harmless]
    place = next(iter([*of_outputs, *first]), None)
    if place is None or stopping[place].harmless:
        return None
    code = "ND250" if layers[place].per_layer.get("dead_data_fraction") == 1 else "ND252"
    return Blame(layers[place].name, "before", stopping[place].state, code, frozenset(["ND501"]))


def _stopping(
    layers: Sequence[LayerMeasures], hits: Mapping[str, Hits]
) -> tuple[dict[int, _Stop], dict[int, int]]:
    """Return, by place, the layers that nothing gets through; and those whose inputs are all the same, with the place
    of the layer before that makes them so.
    """
    stopping: dict[int, _Stop] = {}
    starved: dict[int, int] = {}
    heard = False
    for place, layer in enumerate(layers):
        stop = _stops(layer, hits[layer.name], heard)
        if _starved(layer) and stopping:
            starved[place] = max(stopping)
        elif stop is not None:
            stopping[place] = stop
        heard = heard or not _unheard(layer)
    return stopping, starved


def own_fault(hits: Hits, elsewhere: Sequence[Blame]) -> int:
    """Return how many nodes of a layer are degenerate for a reason of their own."""
    own = (code for code in _DECIDING if code in hits and not any(blame.covers(code) for blame in elsewhere))
    return len({hit.index for code in own for hit in hits[code]})


@dataclass(frozen=True)
class _Stop:
    """Why nothing gets through a layer: the finding that all of its nodes have, and what the layer is then."""

    code: str
    state: str
    harmless: bool = False


def _blame(
    layers: Sequence[LayerMeasures],
    stopping: Mapping[int, _Stop],
    place: int,
    other: int,
    side: Literal["before", "after"],
) -> Blame:
    stop, code, follow = stopping[other], stopping[other].code, _FOLLOWING[side]
    if layers[other].per_layer.get("dead_data_fraction") == 1:
        code = "ND250"  # says it of the layer, and leads to its nodes
    if side == "after" and _constant_behind(layers[place]):
        follow |= _BEHIND
    return Blame(layers[other].name, side, stop.state, code, follow, stop.harmless)


def _constant_behind(layer: LayerMeasures) -> bool:
    """Whether a layer's sums vary while what is seen behind them does not: a scale of zero lies between."""
    spread, sums = layer.per_node.get("output_std"), layer.per_node.get("preactivation_std")
    return spread is not None and sums is not None and bool((spread == 0).all() and (sums > 0).any())


def _in_the_way(stopping: LayerMeasures, layer: LayerMeasures) -> bool:
    """Whether what a layer puts out may have to go through a later one: past a parameter by itself, in its block."""
    if multiplies(stopping):
        return True
    block = stopping.name.rpartition(".")[0].rpartition(".")[0]
    return bool(block) and layer.name.startswith(f"{block}.")


def _stops(layer: LayerMeasures, hits: Hits, way_around: bool) -> _Stop | None:
    """Return why nothing gets through a layer, if so.

    Args:
        layer: the layer.
        hits: the findings of its nodes.
        way_around: whether the output depends on any layer before.
    """
    if way_around and starts_at_zero(layer):
        return _Stop("ND102", "starts at zero", harmless=True)
    for code, state in _STOPPING:
        if len({hit.index for hit in hits.get(code, ())}) == layer.nodes:
            return _Stop(code, state)
    return None


def _starved(layer: LayerMeasures) -> bool:
    """Whether a layer's inputs are the same on every sample: its sums are, though its weights are not zero."""
    spread = layer.per_node.get("preactivation_std")
    if spread is None:
        return False
    listening = layer.per_node["weight_norm"] > 0
    return bool(listening.any()) and float(np.mean(spread[listening] == 0)) >= MOSTLY


def _unheard(layer: LayerMeasures) -> bool:
    """Whether the network's output depends on no node of a layer."""
    reach = layer.per_node.get("output_reach")
    return reach is not None and bool((reach == 0).all())
