"""Findings that backward passes show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nndiag.rules.base import Context, Doc, Hit, Rule, count, short, where

if TYPE_CHECKING:
    from nndiag.records.measured import Floats, LayerMeasures, Mask


def no_gradient(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``E_n ‖∂ℓ_n/∂z_i‖² = 0``, and no influence on the output, or the node is an output itself."""
    reach = layer.per_node.get("gradient_reach")
    if reach is None or context.scales.model.get("gradient_reach_max", 0.0) <= 0:
        return  # no sample has a gradient anywhere: there is nothing left to learn
    edge = context.threshold("zero_ratio") * context.scales.layer["gradient_reach_max"]
    none = reach <= edge
    if layer.is_output:
        none &= (reach == 0) & (not context.few)  # a class that is right for sure has hardly any gradient
    elif "output_reach" in layer.per_node:
        none &= _without_reach(layer, context)  # a loss at its floor sends nothing back to nodes that work
    message = f"the loss gradient of none of {count(context.samples, 'sample')} reaches it"
    acts = acts_detached(layer)
    for i in where(none):
        evidence = {"gradient_reach": float(reach[i]), "threshold": edge}
        if acts[i]:
            evidence |= {"detached": True, "forward_effect": float(layer.per_node["forward_effect"][i])}
            yield Hit(i, f"{message}, yet the output changes without it: {_HELD_BACK}", evidence)
        else:
            yield Hit(i, message, evidence)


_HELD_BACK = "the code detaches it, or the units that listen to it are off"


def acts_detached(layer: LayerMeasures) -> Mask:
    """Return the mask of nodes that no gradient leads to though the outputs change without them."""
    effect = layer.per_node.get("forward_effect", layer.per_node["weight_norm"] * 0)
    mask: Mask = effect > 0
    return mask


def _without_reach(layer: LayerMeasures, context: Context) -> Mask:
    edge = context.threshold("zero_ratio") * context.scales.layer["output_reach_max"]
    mask: Mask = layer.per_node["output_reach"] <= edge
    return mask


FEWEST_INPUTS = 3
"""In fewer dimensions a direction is along the weights by chance often enough."""

FEWEST_DIRECTIONS = 8
"""A layer whose nodes can turn in fewer ways together has no mean torque worth judging."""


def _turnable(layer: LayerMeasures, context: Context) -> Mask | None:
    """Return the mask of nodes whose torque means something: their gradient is more than the probe's noise."""
    torque, signal = layer.per_node.get("torque_ratio"), layer.per_node.get("gradient_signal")
    if torque is None or layer.fan_in < FEWEST_INPUTS:
        return None
    mask: Mask = torque == torque  # not where there is no gradient
    if signal is not None:
        mask &= signal * context.samples**0.5 > context.threshold("torque_signal")
    return mask


def no_torque(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``‖g_t‖/‖g‖ < threshold`` while ``‖g‖`` is neither negligible nor noise."""
    judged, norm = _turnable(layer, context), layer.per_node.get("gradient_norm")
    scale = context.scales.layer.get("gradient_norm", 0.0)
    if judged is None or norm is None or scale <= 0:
        return
    torque = layer.per_node["torque_ratio"]
    edge, gamma = context.threshold("no_torque"), context.threshold("torque_gradient") * scale
    message = f"its gradient only rescales it: less than {short(100 * edge)} % of it turns the weights"
    for i in where(judged & (torque < edge) & (norm > gamma)):
        evidence = {"torque_ratio": float(torque[i]), "threshold": edge, "gradient_norm": float(norm[i])}
        yield Hit(i, message, evidence)


def exploding_gradient(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``√E‖∂ℓ_n/∂z_i‖² > ratio · median_j``, and the same of its product with ``std(z_i)`` over all layers."""
    reach, moves = layer.per_node.get("gradient_reach"), loss_moved(layer)
    scale, ratio = context.scales.layer.get("gradient_reach", 0.0), context.threshold("explode_gradient")
    usual = context.scales.model.get("loss_moved", 0.0)
    if reach is None or moves is None or layer.nodes < 3 or scale <= 0 or usual <= 0:
        return
    message = f"its gradients have exploded: they are over {short(ratio)} times what is usual in its layer"
    for i in where((reach > ratio * scale) & (moves > ratio * usual)):
        evidence = {
            "gradient_reach": float(reach[i]),
            "threshold": ratio * scale,
            "loss_moved": float(moves[i]),
        }
        yield Hit(i, message, evidence)


def loss_moved(layer: LayerMeasures) -> Floats | None:
    """Return ``√E‖∂ℓ_n/∂z_i‖² · std(z_i)`` per node, which rescaling layers does not change; ``None`` if not taken."""
    reach, spread = layer.per_node.get("gradient_reach"), layer.per_node.get("preactivation_std")
    if reach is None or spread is None:
        return None
    moved: Floats = reach * spread
    return moved


def no_influence(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``E_n ‖∂f_n/∂z_i‖² = 0`` for a unit whose output varies."""
    reach, spread = layer.per_node.get("output_reach"), layer.per_node.get("output_std")
    if reach is None or spread is None or context.scales.model.get("output_reach_max", 0.0) <= 0:
        return
    edge = context.threshold("zero_ratio") * context.scales.layer["output_reach_max"]
    message = "its output varies, yet the network's output does not depend on it"
    for i in where(_without_reach(layer, context) & (spread > 0) & ~_shut(layer) & ~acts_detached(layer)):
        yield Hit(i, message, {"output_reach": float(reach[i]), "threshold": edge})


def _shut(layer: LayerMeasures) -> Mask:
    """Units that let no gradient pass themselves, whatever listens to them: switches at their two ends."""
    reach = layer.per_node["output_reach"]
    mask: Mask = layer.per_node.get("active_fraction", reach + 1) == 0
    return mask


def low_torque(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """Mean over the nodes of ``‖g_t‖/‖g‖`` below the threshold."""
    judged = _turnable(layer, context)
    edge = context.threshold("low_torque")
    if judged is None or 2 * judged.sum() < layer.nodes:
        return
    mean = float(layer.per_node["torque_ratio"][judged].mean())
    if judged.sum() * (layer.fan_in - 1) < FEWEST_DIRECTIONS or mean >= edge:
        return
    message = f"on average {short(100 * mean)} % of a node's gradient turns it; the rest only rescales it"
    yield Hit(None, message, {"torque_ratio_mean": mean, "threshold": edge})


RULES = (
    Rule("ND301", "no-gradient", "node", "warning", "no sample's gradient reaches the node", Doc(
        meaning="The derivative of the loss with respect to the node's output is zero for every sample of the probe, "
        "so no gradient step changes the node.",
        measured="√E‖∂ℓ_n/∂z_i‖² at most zero_ratio of the largest in the layer, and the same of the network's output, "
        "unless the node is an output itself. Zero everywhere is death; a mean of zero with a large spread over "
        "samples is convergence, and a node that moves the output under a loss at its floor has nothing left to "
        "learn: neither is this finding. Where the outputs change once the node is set to zero or to its mean, its "
        "output is used: it is detached in the code, or the units that listen to it are off on this probe, and the "
        "message says so.",
        why="A dead unit, outgoing weights of zero, a detached or unused branch, dead layers after it.",
        do="Look at the cause. Reinitialise while training; prune from a finished network.",
        harmless="For heads and branches that this loss does not use.",
        source="Backpropagation; Glorot and Bengio 2010.",
    ), no_gradient, ("zero_ratio",)),
    Rule("ND302", "no-torque", "node", "warning", "the gradient rescales the node but cannot turn it", Doc(
        meaning="The gradient of the node's weights is parallel to the weights. Steps change its length and not its "
        "direction: it is stuck with the feature that it has.",
        measured="τ = ‖g_t‖/‖g‖, with g_t the part of the gradient orthogonal to the weights, below no_torque, where "
        "the gradient is at least torque_gradient of the layer's median and torque_signal standard errors of its mean "
        "over the samples. Nodes of fewer than three inputs are not judged.",
        why="One feature left in the data that reaches the node, symmetric configurations, a single active sample "
        "along the weights.",
        do="Add angular noise along g_t, or a temporary leaky slope, and measure again.",
        harmless="When the direction is already right: check whether the loss is at its floor.",
        source="Torque of prototype surfaces: the decomposition of a gradient in polar coordinates.",
    ), no_torque, ("no_torque", "torque_gradient", "torque_signal")),
    Rule("ND303", "exploding-gradient", "node", "warning", "the node's gradients are far larger than all others", Doc(
        meaning="The gradients that reach the node are larger than those of its layer and of the network by "
        "orders of magnitude: one step moves this node and hardly anything else, and gradient clipping scales all "
        "others to nothing.",
        measured="Root mean square over the samples of the loss's derivative at the node's output, √E‖∂ℓ_n/∂z‖², above "
        "explode_gradient times its layer's median; and so is its product with the standard deviation of z beside the "
        "median over all layers, which no rescaling of layers changes.",
        why="Outgoing weights of the node that are huge, a layer after it that divides by nearly nothing, a loss that "
        "is not bounded on some samples.",
        do="Look for exploded weights before and after it (ND103), normalise its inputs, clip gradients, look at the "
        "samples of the largest loss.",
        harmless="At the very first steps, and where Adam divides the size out again.",
        source="Pascanu et al. 2013 on exploding gradients.",
    ), exploding_gradient, ("explode_gradient",)),
    Rule("ND304", "no-influence", "node", "warning", "the unit is active, yet nothing downstream depends on it", Doc(
        meaning="The unit's output varies over the probe but the network's output does not depend on it: ∂f/∂z is "
        "zero for every sample. It costs computation and does nothing.",
        measured="√E‖∂f_n/∂z_i‖² at most zero_ratio of the largest in the layer, for a unit whose output is not "
        "constant and whose activation is not flat everywhere; and the outputs stay the same with the node set "
        "to zero and to its mean, which tells it from one that is detached or waits behind units that are off (ND301).",
        why="Outgoing weights of zero (pruning, weight decay, a zero-initialised next layer), dead units after it, an "
        "unused branch; of queries and keys, values of zero in their head; of a unit that is active in some positions "
        "only, that the output reads others.",
        do="Prune it from a finished network: the outputs do not change. While training: reinitialise it, unless its "
        "outgoing weights were set to zero on purpose a moment ago.",
        harmless="Right after a function-preserving reinitialisation, or for heads that the probe does not read.",
        source="The empirical neural tangent kernel, Jacot et al. 2018: the node's share of its trace is zero.",
    ), no_influence, ("zero_ratio",)),
    Rule("ND350", "low-torque", "layer", "warning", "the layer's gradients mostly rescale its nodes", Doc(
        meaning="On average only a small part of the gradient turns the nodes of the layer.",
        measured="Mean of τ = ‖g_t‖/‖g‖ below low_torque, over the nodes whose gradient is at least torque_signal "
        "standard errors (see ND302), if they are half of the layer at least.",
        why="Divergence along the weights (norm growth at separable data), few active samples.",
        do="Compare with earlier checkpoints. Weight decay or normalisation stops pure growth.",
        harmless="At the end of training on separable data, where only norms still grow.",
        source="As ND302.",
    ), low_torque, ("low_torque", "torque_signal")),
)  # fmt: skip
