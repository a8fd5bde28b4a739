"""One word a node: healthy, collapsed, plateau, source, saddle or unknown; and whether every fold says the
same.

Precedence: a node that is not finite is unknown; collapsed before plateau before source before saddle: a node above the
stability threshold is thrown about before it can slide down, and one that is dead or saturated does neither. Healthy
only where the curvature was measured, since no cheaper level can tell; Gauss-Newton blocks cannot tell a saddle. What
the probe never used is unknown, and so is what lies behind a layer that starts at zero, until that has opened.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nndiag.records.measured import LayerMeasures, Mask
from nndiag.rules import curvature
from nndiag.rules.activations import silence
from nndiag.rules.base import Context, Hit

PLATEAU_CODES = ("ND201", "ND202", "ND304", "ND401")


def verdicts(
    layer: LayerMeasures, context: Context, hits: Mapping[str, list[Hit]]
) -> tuple[list[str], list[bool]]:
    """Return the verdict of every node, and whether it holds in every fold of the probe, and rests on enough samples.

    Args:
        layer: the layer's numbers.
        context: scales and thresholds.
        hits: the node findings of the layer by code, before any is selected or ignored.
    """
    collapsed = _mask(layer, hits, ("ND102",))
    stuck = _mask(layer, hits, PLATEAU_CODES) | _no_gradient_at_all(layer, hits)
    source = _mask(layer, hits, ("ND402",))
    saddle = _mask(layer, hits, ("ND403",))
    told = np.full(layer.nodes, "lambda_max" in layer.per_node) & np.isfinite(
        layer.per_node.get("lambda_max", np.full(layer.nodes, np.nan))
    )
    words = np.where(told, "healthy", "unknown").astype(object)
    words[saddle] = "saddle"
    words[source] = "source"
    words[stuck] = "plateau"
    words[collapsed] = "collapsed"
    words[_mask(layer, hits, ("ND101",))] = "unknown"
    steady = _steady(layer, context, words)
    if hits.get("ND201") and not silence(layer, context).sure:
        steady &= ~_mask(layer, hits, ("ND201",)) | collapsed
    return [str(w) for w in words], steady.tolist()


def _mask(layer: LayerMeasures, hits: Mapping[str, list[Hit]], codes: tuple[str, ...]) -> Mask:
    mask = np.zeros(layer.nodes, dtype=bool)
    for code in codes:
        mask[[hit.index for hit in hits.get(code, ()) if hit.index is not None]] = True
    return mask


def _no_gradient_at_all(layer: LayerMeasures, hits: Mapping[str, list[Hit]]) -> Mask:
    """Nodes with neither gradient nor influence: flat whatever the curvature level would add."""
    reach = layer.per_node.get("output_reach")
    if reach is None:
        return np.zeros(layer.nodes, dtype=bool)
    both: Mask = _mask(layer, hits, ("ND301",)) & (reach == 0)
    return both


def _steady(layer: LayerMeasures, context: Context, words: NDArray[np.object_]) -> Mask:
    """Whether the masks that decide, taken on each fold alone, give the same answer in all of them, and under noise."""
    steady = np.ones(layer.nodes, dtype=bool)
    opened = layer.per_fold.get("open_count")
    if opened is not None:
        steady &= _agree(opened == 0)
    noisy = layer.per_node.get("jitter_active")
    if noisy is not None:
        steady &= (layer.per_node["active_fraction"] > 0) | ~(noisy > 0)
    folds = layer.per_fold.get("lambda_max")
    if folds is not None:
        steady &= _agree(curvature.flat(layer, context, folds))
        margin, largest = layer.per_node.get("stability_margin"), layer.per_node["lambda_max"]
        if margin is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                by_fold = np.nan_to_num(margin * folds / largest)
            steady &= _agree(curvature.unstable(layer, context, by_fold))
        lowest = layer.per_fold.get("lambda_min")
        if lowest is not None:
            found = curvature.negative(layer, context, lowest)
            steady &= np.where(words == "saddle", found.all(axis=0), True)
    steady[words == "collapsed"] = True  # the weights do not depend on the probe
    return steady


def _agree(by_fold: Mask) -> Mask:
    agree: Mask = np.logical_or(by_fold.all(axis=0), ~by_fold.any(axis=0))
    return agree
