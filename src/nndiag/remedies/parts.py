"""Nodes that cannot be taken out by themselves, because the network's shapes tie them to others."""

from __future__ import annotations

import re

from nndiag.records.measured import LayerMeasures
from nndiag.rules.nodes import multiplies, single

_RECURRENT = frozenset(["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
TOGETHER = _RECURRENT | {"MultiheadAttention"}
"""Kinds of layers whose nodes can be silenced where their shapes tie them to others."""
ONE_OF_SEVERAL = re.compile(r"(^|\.)l\d+(_reverse)?$")
"""The end of the name of one layer or direction of a recurrent module that has several."""


def tied(layer: LayerMeasures) -> str | None:
    """Return why no node of the layer can go alone, for a sentence after "but"; ``None`` where one can."""
    if not multiplies(layer):
        return "a row or number of a parameter cannot go by itself"
    if single(layer) and "output_std" not in layer.per_node:
        return "it goes only with the unit that it scales"
    if layer.kind == "MultiheadAttention" and layer.nodes == 3 * layer.fan_in:
        return "a row of an attention goes only with its whole head"
    if layer.kind in _RECURRENT:
        one = ONE_OF_SEVERAL.search(layer.name)
        return "all layers and directions of a recurrent module have the same units" if one else None
    if _heads(layer) and layer.parameters < 3 * layer.fan_in**2:
        return "a head goes only with its queries, keys and values together"
    return None


def _heads(layer: LayerMeasures) -> bool:
    """Whether a node has several rows, as a head does."""
    return layer.fan_in > 1 and layer.parameters >= 2 * layer.nodes * layer.fan_in
