"""Single nodes whose trouble lies in one node of another layer: a unit and the channel of a norm that scales it.

A norm after a layer has a channel for each of its units. A scale of zero shuts the unit; a unit that is dead leaves its
channel without gradient. Which norm belongs to which layer no record says: it is the nearest one of as many nodes in
which the very node is cut off that the other would cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nndiag.records.measured import LayerMeasures
from nndiag.rules.across import Blame, Hits
from nndiag.rules.nodes import scales_units

SHUT_BY_CHANNEL = frozenset(["ND201", "ND202", "ND203", "ND204", "ND205", "ND206", "ND301", "ND304", "ND401"])
"""What a unit shows whose channel's scale is zero: its outputs are looked at behind the norm."""
CUT_OFF_BY_UNIT = frozenset(["ND301", "ND302", "ND304", "ND401"])
"""What a channel shows whose unit is constant."""
_STATES = (
    ("ND102", "has collapsed"),
    ("ND201", "is dead"),
    ("ND202", "is saturated"),
    ("ND304", "has no influence"),
    ("ND301", "gets no gradient"),
)
SHUT = 1e-5
"""Share of its layer's largest reach up to which a unit counts as shut: one whose scale has collapsed to a rest."""


def channel_blames(layers: Sequence[LayerMeasures], hits: Mapping[str, Hits]) -> dict[str, dict[int, Blame]]:
    """Return, by layer and node, the node of another layer that its findings follow from.

    Args:
        layers: in the order in which the network has them.
        hits: the node findings of every layer, by layer and code.
    """
    found: dict[str, dict[int, Blame]] = {layer.name: {} for layer in layers}
    for place, norm in enumerate(layers):
        if not scales_units(norm):
            continue
        collapsed = _own(hits[norm.name], "ND102")
        for node in range(norm.nodes):
            for unit in _partners(layers[:place], norm, node):
                if node in collapsed:
                    found[unit.name][node] = Blame(
                        norm.name, "after", "has collapsed", "ND102", SHUT_BY_CHANNEL, channel=True
                    )
                    break
                if (stuck := _stuck(hits[unit.name], node)) is not None and _cut_off(norm, node):
                    code, state = stuck
                    found[norm.name][node] = Blame(
                        unit.name, "before", state, code, CUT_OFF_BY_UNIT, channel=True
                    )
                    break
    return found


def _partners(before: Sequence[LayerMeasures], norm: LayerMeasures, node: int) -> Iterator[LayerMeasures]:
    """Yield the layers whose unit the channel may scale, the nearest first: nothing gets through it there."""
    for layer in reversed(before):
        if layer.nodes == norm.nodes and "output_std" in layer.per_node and _cut_off(layer, node):
            yield layer


def _cut_off(layer: LayerMeasures, node: int) -> bool:
    reach = layer.per_node.get("output_reach")
    return reach is not None and bool(reach[node] <= SHUT * np.nanmax(reach, initial=0.0))


def _stuck(hits: Hits, node: int) -> tuple[str, str] | None:
    """Return the finding by which a unit lets nothing through, and what it is then."""
    return next(((code, state) for code, state in _STATES if node in _own(hits, code)), None)


def _own(hits: Hits, code: str) -> set[int]:
    return {hit.index for hit in hits.get(code, ()) if hit.index is not None and not hit.note}
