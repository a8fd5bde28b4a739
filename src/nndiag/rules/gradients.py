"""Findings that backward passes show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nndiag.rules.base import Context, Doc, Hit, Rule, count, short, where

if TYPE_CHECKING:
    from nndiag.records.measured import LayerMeasures


def no_gradient(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``E_n ‖∂ℓ_n/∂z_i‖² = 0``."""
    reach = layer.per_node.get("gradient_reach")
    largest = context.scales.model.get("gradient_reach_max", 0.0)
    if reach is None or largest <= 0:
        return
    edge = context.threshold("zero_ratio") * largest
    for i in where(reach <= edge):
        message = f"the loss gradient of none of {count(context.samples, 'sample')} reaches it"
        yield Hit(i, message, {"gradient_reach": float(reach[i]), "threshold": edge})


def no_torque(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``‖g_t‖/‖g‖ < threshold`` while ``‖g‖`` is not negligible."""
    torque, norm = layer.per_node.get("torque_ratio"), layer.per_node.get("gradient_norm")
    scale = context.scales.layer.get("gradient_norm", 0.0)
    if torque is None or norm is None or layer.fan_in < 2 or scale <= 0:
        return
    edge, gamma = context.threshold("no_torque"), context.threshold("torque_gradient") * scale
    for i in where((torque < edge) & (norm > gamma)):
        message = f"its gradient only rescales it: {short(100 * torque[i])} % of it turns the weights"
        evidence = {"torque_ratio": float(torque[i]), "threshold": edge, "gradient_norm": float(norm[i])}
        yield Hit(i, message, evidence)


def no_influence(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``E_n ‖∂f_n/∂z_i‖² = 0`` for a unit whose output varies."""
    reach, spread = layer.per_node.get("output_reach"), layer.per_node.get("output_std")
    largest = context.scales.model.get("output_reach_max", 0.0)
    if reach is None or spread is None or largest <= 0:
        return
    edge = context.threshold("zero_ratio") * largest
    for i in where((reach <= edge) & (spread > 0)):
        message = "active, yet nothing downstream depends on it"
        yield Hit(i, message, {"output_reach": float(reach[i]), "threshold": edge})


def low_torque(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """Mean over the nodes of ``‖g_t‖/‖g‖`` below the threshold."""
    mean = layer.per_layer.get("torque_ratio_mean")
    edge = context.threshold("low_torque")
    if mean is None or layer.fan_in < 2 or mean >= edge:
        return
    message = f"on average {short(100 * mean)} % of a node's gradient turns it; the rest only rescales it"
    yield Hit(None, message, {"torque_ratio_mean": mean, "threshold": edge})


RULES = (
    Rule("ND301", "no-gradient", "node", "warning", "no sample's gradient reaches the node", Doc(
        meaning="The derivative of the loss with respect to the node's output is zero for every sample of the probe, "
        "so no gradient step changes the node.",
        measured="√E‖∂ℓ_n/∂z_i‖² at most zero_ratio of the largest in the model. Zero everywhere is death; a mean of "
        "zero with a large spread over samples is convergence, and is not this finding.",
        why="A dead unit, outgoing weights of zero, a detached or unused branch, dead layers after it.",
        do="Look at the cause. Reinitialise while training; prune from a finished network.",
        harmless="For heads and branches that this loss does not use.",
        source="Backpropagation; Glorot and Bengio 2010.",
    ), no_gradient, ("zero_ratio",)),
    Rule("ND302", "no-torque", "node", "warning", "the gradient rescales the node but cannot turn it", Doc(
        meaning="The gradient of the node's weights is parallel to the weights. Steps change its length and not its "
        "direction: it is stuck with the feature that it has.",
        measured="τ = ‖g_t‖/‖g‖, with g_t the part of the gradient orthogonal to the weights, below no_torque, where "
        "the gradient is at least torque_gradient of the layer's median.",
        why="One feature left in the data that reaches the node, symmetric configurations, a single active sample "
        "along the weights.",
        do="Add angular noise along g_t, or a temporary leaky slope, and measure again.",
        harmless="When the direction is already right: check whether the loss is at its floor.",
        source="Torque of prototype surfaces: the decomposition of a gradient in polar coordinates.",
    ), no_torque, ("no_torque", "torque_gradient")),
    Rule("ND304", "no-influence", "node", "warning", "the unit is active, yet nothing downstream depends on it", Doc(
        meaning="The unit's output varies over the probe but the network's output does not depend on it: ∂f/∂z is "
        "zero for every sample. It costs computation and does nothing.",
        measured="√E‖∂f_n/∂z_i‖² at most zero_ratio of the largest in the model, for a unit whose output is not "
        "constant.",
        why="Outgoing weights of zero (pruning, weight decay, a zero-initialised next layer), dead units after it, an "
        "unused branch.",
        do="Prune it from a finished network: the outputs do not change. While training: reinitialise it, unless its "
        "outgoing weights were set to zero on purpose a moment ago.",
        harmless="Right after a function-preserving reinitialisation, or for heads that the probe does not read.",
        source="The empirical neural tangent kernel, Jacot et al. 2018: the node's share of its trace is zero.",
    ), no_influence, ("zero_ratio",)),
    Rule("ND350", "low-torque", "layer", "warning", "the layer's gradients mostly rescale its nodes", Doc(
        meaning="On average only a small part of the gradient turns the nodes of the layer.",
        measured="Mean over the nodes with a gradient of τ = ‖g_t‖/‖g‖ below low_torque.",
        why="Divergence along the weights (norm growth at separable data), few active samples.",
        do="Compare with earlier checkpoints. Weight decay or normalisation stops pure growth.",
        harmless="At the end of training on separable data, where only norms still grow.",
        source="As ND302.",
    ), low_torque, ("low_torque",)),
)  # fmt: skip
