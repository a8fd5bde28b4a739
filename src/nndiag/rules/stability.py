"""Findings on what the optimiser's steps make of the curvature, beside the source: flips, and layers that are sharp."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from nndiag.rules.base import Context, Doc, Hit, Rule, short

if TYPE_CHECKING:
    from nndiag.records.measured import Floats, LayerMeasures


def flip(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``‖u' + u‖ ≤ residual ‖u‖`` for the node's next two steps, or ``|margin − 1| ≤ band``."""
    margin, left = layer.per_node.get("stability_margin"), layer.per_node.get("step_residual")
    if margin is None and left is None:
        return
    band, residual = context.threshold("flip_band"), context.threshold("flip_residual")
    for i in range(layer.nodes):
        at_edge = margin is not None and abs(margin[i] - 1) <= band
        undone = left is not None and left[i] <= residual
        if not at_edge and not undone:
            continue
        evidence: dict[str, float | None] = {"threshold": residual if undone else band}
        if margin is not None and margin[i] == margin[i]:
            evidence["stability_margin"] = float(margin[i])
        if left is not None and undone:
            evidence["step_residual"] = float(left[i])
            message = "it flips: the next step of the optimiser takes back this one"
        else:
            message = "an eigenvalue of its update map is at −1: steps turn round without shrinking"
        yield Hit(i, message, evidence)


def sharp_layer(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``max_i margin_i ≥ share``, and at least ``ratio`` times the median of that over the other layers."""
    rate, margin = context.learning_rate(layer), _sharpest(layer)
    others = [_sharpest(other) for other in context.measured.layers if other.name != layer.name]
    known = [other for other in others if other is not None and other > 0]
    edge = context.threshold("sharp_margin")
    if margin is None or margin < edge or not rate:
        return
    if known and margin < context.threshold("sharp_ratio") * median(known):
        return
    evidence: dict[str, float] = {"stability_margin_max": margin, "threshold": edge}
    if known:
        evidence["other_layers"] = median(known)
    message = (
        f"it limits the learning rate: its sharpest node is at {short(margin)} of the stability threshold"
    )
    yield Hit(None, message, evidence, sure=not context.few)


def _sharpest(layer: LayerMeasures) -> float | None:
    margin: Floats | None = layer.per_node.get("stability_margin")
    known = None if margin is None else margin[abs(margin) < math.inf]
    return None if known is None or not known.size else float(known.max())


RULES = (
    Rule("ND404", "flip", "node", "warning", "the next step takes back this one: an update-map eigenvalue at −1", Doc(
        meaning="The optimiser jumps back and forth across the bottom of a valley here: what one step does to the node "
        "the next one undoes. The loss may look settled while nothing is learnt along that direction, and the weights "
        "depend on whether the number of steps was even.",
        measured="Two steps are tried on the probe, u = −α_e P⁻¹∇L(θ) and u' = −α_e P⁻¹∇L(θ + u), all nodes moving "
        "together: ‖u'_i + u_i‖ at most flip_residual of ‖u_i‖. α_e is two over the stability threshold, P Adam's "
        "preconditioner. This sees cycles across kinks, where the curvature says nothing. Or, linearised, a "
        "stability_margin within flip_band of one.",
        why="A learning rate at the edge of stability: 2/α for gradient descent, 2(1+β)/α with momentum, 38/α for "
        "Adam. Or a kink: on |w| gradient descent settles on a stable cycle of two steps at any learning rate.",
        do="Halve the learning rate, or average the weights of two consecutive steps.",
        harmless="Full-batch training at the edge of stability makes progress all the same. A probe from other data "
        "than the training's says less.",
        source="Period-two orbits of gradient descent; Cohen et al. 2021 on the edge of stability.",
    ), flip, ("flip_residual", "flip_band")),
    Rule("ND450", "sharp-layer", "layer", "warning", "one layer limits the learning rate of the whole network", Doc(
        meaning="The sharpest node of this layer is close to the optimiser's stability threshold or above it, far "
        "sharper than those of the other layers. The learning rate cannot be raised, and may have to fall, because of "
        "this layer alone.",
        measured="The layer's largest stability_margin, λ_max of a node's block over the optimiser's threshold, at "
        "least sharp_margin, and at least sharp_ratio times the median over the other layers. The layer as a whole is "
        "at least as sharp as its sharpest node.",
        why="Inputs of the layer that are not normalised or have a large mean, a bias that all samples share, weights "
        "after it that grew large.",
        do="Normalise or centre the layer's inputs, or give the layer a smaller learning rate of its own. Look at the "
        "layers before it for exploded weights (ND103).",
        harmless="In full-batch training at the edge of stability, where some layer always is.",
        source="Cauchy's interlacing theorem for the bound; LeCun et al. 1998, Efficient BackProp, section 5, for "
        "centred inputs.",
    ), sharp_layer, ("sharp_margin", "sharp_ratio")),
)  # fmt: skip
