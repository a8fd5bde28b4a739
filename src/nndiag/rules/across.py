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

Hits = Mapping[str, Sequence[Hit]]

_STOPPING = (("ND102", "has collapsed"), ("ND201", "is dead"), ("ND202", "is saturated"))
"""Findings that stop everything where all nodes of a layer have them, and what the layer is then."""

_FOLLOWING = {
    "after": frozenset(["ND301", "ND304", "ND401"]),
    "before": frozenset(["ND201", "ND202", "ND203", "ND204", "ND205", "ND206", "ND302", "ND401"]),
}
_DECIDING = frozenset(["ND102", "ND201", "ND202", "ND304"])
_OF_LAYER = {"after": frozenset(["ND252"]), "before": frozenset(["ND251", "ND252"])}

MOSTLY = 0.9
"""Share of a layer's nodes that must be exactly still to say that its inputs are: sums of equal inputs may
differ by rounding."""


@dataclass(frozen=True)
class Blame:
    """What is wrong with another layer, on which side it stands, and which findings follow from it.

    ``code`` is the finding there.
    """

    layer: str
    side: Literal["before", "after"]
    state: str
    code: str

    @property
    def sentence(self) -> str:
        """What to add to a message, e.g. ``"layer 4 after it is dead"``."""
        return f"layer {self.layer} {self.side} it {self.state}"

    def covers(self, code: str) -> bool:
        """Whether a finding of this code follows from the other layer."""
        return code in _FOLLOWING[self.side] or code in _OF_LAYER[self.side]


def blames(layers: Sequence[LayerMeasures], hits: Mapping[str, Hits]) -> dict[str, tuple[Blame, ...]]:
    """Return, by layer, the other layers that its findings follow from.

    Args:
        layers: in the order in which the network has them.
        hits: the node findings of every layer, by layer and code.
    """
    found: dict[str, list[Blame]] = {layer.name: [] for layer in layers}
    stopping: dict[int, tuple[str, str]] = {}
    for place, layer in enumerate(layers):
        if _starved(layer) and stopping:
            found[layer.name].append(_blame(layers, stopping, max(stopping), "before"))
        elif (state := _stops(layer, hits[layer.name])) is not None:
            stopping[place] = state
    for place, layer in enumerate(layers):
        later = [other for other in stopping if other > place]
        if later and place not in stopping and _unheard(layer):
            found[layer.name].append(_blame(layers, stopping, min(later), "after"))
    return {name: tuple(reasons) for name, reasons in found.items()}


def own_fault(hits: Hits, elsewhere: Sequence[Blame]) -> int:
    """Return how many nodes of a layer are degenerate for a reason of their own."""
    own = (code for code in _DECIDING if code in hits and not any(blame.covers(code) for blame in elsewhere))
    return len({hit.index for code in own for hit in hits[code]})


def _blame(
    layers: Sequence[LayerMeasures],
    stopping: Mapping[int, tuple[str, str]],
    place: int,
    side: Literal["before", "after"],
) -> Blame:
    code, state = stopping[place]
    if layers[place].per_layer.get("dead_data_fraction") == 1:
        code = "ND250"  # says it of the layer, and leads to its nodes
    return Blame(layers[place].name, side, state, code)


def _stops(layer: LayerMeasures, hits: Hits) -> tuple[str, str] | None:
    """Return the finding that all nodes of a layer have, and what the layer is then."""
    for code, state in _STOPPING:
        if len({hit.index for hit in hits.get(code, ())}) == layer.nodes:
            return code, state
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
