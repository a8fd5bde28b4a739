"""Layers that findings about the whole network's outputs follow from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nndiag.records.measured import LayerMeasures
from nndiag.rules.across import Blame, Hits, stops_everything

_TOO_LARGE = frozenset(["ND501", "ND503", "ND504"])
"""What outputs show that one unit drowns: all the same, and all but certain."""


def of_the_model(layers: Sequence[LayerMeasures], hits: Mapping[str, Hits]) -> tuple[Blame, ...]:
    """Return what is wrong with layers for which the outputs are as they are: nothing gets through one, or the weights
    of one have exploded, which drowns all others and makes choices certain.

    Args:
        layers: in the order in which the network has them.
        hits: the node findings of every layer, by layer and code.
    """
    stop = stops_everything(layers, hits)
    exploded = (
        Blame(layer.name, "before", _exploded(count), "ND103", _TOO_LARGE)
        for layer in layers
        if (count := len(hits[layer.name].get("ND103", ())))
    )
    return tuple(replace(one, whole=True) for one in (stop, next(exploded, None)) if one is not None)


def _exploded(count: int) -> str:
    return f"has {count:,} node{'s' if count > 1 else ''} whose weights have exploded"
