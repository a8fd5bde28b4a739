"""What is better and what is worse in a layer: first checkpoint against last, or one run against another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from nndiag.comparing.run import LayerRun

Trend = Literal["better", "worse", "same"]

_MORE_IS_BETTER = {
    "effective_rank": True, "torque_ratio_mean": True, "torque_ratio_p10": True, "dead_data_fraction": False,
    "dormant_fraction": False,
}  # fmt: skip
_MARGIN = "stability_margin_max"
_NOTICEABLE = {"effective_rank": 0.25}
"""Change, relative to the larger of the two, up to which a measure counts as the same; ranks fall as a network
learns.
"""


def changes(layer: LayerRun) -> Iterator[tuple[str, float, float, Trend]]:
    """Yield the measures that both ends have, with their values and which is better.

    The stability margin is worse only where it passes 1, the optimiser's threshold; below it, sharper is not worse.
    """
    if not (layer.present[0] and layer.present[-1]):
        return
    shares = layer.degenerate.mean(axis=1)
    yield "degenerate_fraction", *_judged(float(shares[0]), float(shares[-1]), more=False, least=0.0)
    for name, more in _MORE_IS_BETTER.items():
        pair = _pair(layer, name)
        if pair is not None:
            yield name, *_judged(*pair, more=more, least=_NOTICEABLE.get(name, 0.05))
    margin = _pair(layer, _MARGIN)
    if margin is not None:
        first, last = margin
        trend: Trend = "same" if (first > 1) == (last > 1) else "worse" if last > 1 else "better"
        yield _MARGIN, first, last, trend


def _pair(layer: LayerRun, name: str) -> tuple[float, float] | None:
    values = layer.measures.get(name)
    if values is None or not (math.isfinite(values[0]) and math.isfinite(values[-1])):
        return None
    return float(values[0]), float(values[-1])


def _judged(first: float, last: float, *, more: bool, least: float) -> tuple[float, float, Trend]:
    scale = max(abs(first), abs(last))
    if abs(last - first) <= least * scale:
        return first, last, "same"
    return first, last, "better" if (last > first) == more else "worse"
