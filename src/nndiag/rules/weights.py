"""Findings that the weights alone show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from nndiag.rules.base import Context, Doc, Hit, Rule, count, short, where
from nndiag.rules.nodes import multiplies, single, starts_at_zero, unobserved

if TYPE_CHECKING:
    from nndiag.records.measured import LayerMeasures

ONE_SIDED = frozenset(
    "relu leaky_relu prelu rrelu relu6 elu celu selu gelu silu mish softplus logsigmoid hardswish threshold clamp "
    "maximum".split()
)
"""Activations under which a unit and its mirror image put out different things: nothing to merge."""

INITIAL_SCALE = 3**-0.5
"""Norm of a row under torch's default initialiser, uniform in ±1/√fan_in: 1/√3 whatever the fan-in."""


def non_finite(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``Σ_j 1{θ_ij is NaN or ±inf} > 0``."""
    bad = layer.per_node["nonfinite_parameters"]
    for i in where(bad > 0):
        number = int(bad[i])
        verb = "is" if number == 1 else "are"
        message = f"{count(number, 'parameter')} of it {verb} not finite"
        yield Hit(i, message, {"nonfinite_parameters": number, "threshold": 0})


COMPENSATED = 0.1
"""A small layer is one of a rescaled pair where another is so large that their product exceeds this."""


def _usual_norm(layer: LayerMeasures, context: Context) -> float:
    """Return the norm against which a layer's nodes have collapsed.

    The layer's median, but at least the initial scale: a layer that has shrunk as a whole has collapsed too.
    Where another layer is as much too large, the two are only rescaled, as homogeneous activations allow. Of single
    numbers without a bias nobody knows the initial scale: a norm may store ``γ − 1``.
    """
    usual = context.scales.layer.get("weight_norm", 0.0)
    if single(layer) and "bias" not in layer.per_node:
        return usual
    largest = context.scales.model["weight_norm_of_largest"]
    if usual > 0 and usual * largest / INITIAL_SCALE**2 > COMPENSATED:
        return usual
    return max(usual, INITIAL_SCALE)


def zero_collapse(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``‖w_i‖ < ratio · max(median_j ‖w_j‖, 1/√3)`` of weights that multiply inputs; of a single one ``ratio²``."""
    if not multiplies(layer):
        return
    norm = layer.per_node["weight_norm"]
    scale, edge = _usual_norm(layer, context), _collapsed_below(layer, context)
    start = starts_at_zero(layer) and _way_around(context)
    if start:
        message = "all weights of the layer are as good as zero and its gradient is not: a start that training leaves"
    elif single(layer):
        message = f"its one weight has collapsed: it is below {short(edge)}, where {short(scale)} is usual"
    else:
        message = f"incoming weights have collapsed: their norm is below {short(edge)}, where {short(scale)} is usual"
    for i in where(norm < edge):
        evidence = {"weight_norm": float(norm[i]), "threshold": edge, "single": single(layer)}
        yield Hit(i, message, evidence, note=start)


def _collapsed_below(layer: LayerMeasures, context: Context) -> float:
    """Return the norm below which a node has collapsed."""
    ratio = context.threshold("collapse_ratio")
    return (ratio**2 if single(layer) else ratio) * _usual_norm(layer, context)


def _way_around(context: Context) -> bool:
    """Whether something reaches the output from before the layer, although its weights are zero."""
    before = context.measured.layers[: context.place]
    reaches = (other.per_node["output_reach"] for other in before if "output_reach" in other.per_node)
    return any(bool((reach > 0).any()) for reach in reaches)


def exploding_norm(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``‖w_i‖ > ratio · median_j ‖w_j‖``, the median over the nodes that have not collapsed."""
    if layer.nodes < 3 or (single(layer) and not multiplies(layer)):
        return
    norm = layer.per_node["weight_norm"]
    edge = _collapsed_below(layer, context) if multiplies(layer) else 0.0
    standing = norm[(norm >= edge) & (norm > 0) & (norm < math.inf)].tolist()
    if not standing:
        return
    scale, ratio = median(standing), context.threshold("explode_ratio")
    message = f"incoming weights have exploded: their norm is over {ratio:g} times the layer's median"
    for i in where(norm > ratio * scale):
        evidence = {
            "weight_norm": float(norm[i]),
            "threshold": ratio * scale,
            "times_median": float(norm[i] / scale),
        }
        yield Hit(i, message, evidence)


def duplicate_weights(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``‖θ_i ∓ θ_j‖ ≤ 1e-6 ‖θ_j‖`` for an earlier node ``j``."""
    sums, unused = multiplies(layer), unobserved(layer)
    message = f"has the same {'weights and bias' if sums else 'numbers'} as an earlier node of its layer"
    for node, earlier in layer.duplicates.get("weights", ()):
        evidence = {"duplicate_of": earlier, "sign": 1, "rows": not sums, "threshold": 1e-6}
        yield Hit(node, message, evidence, note=unused is not None and bool(unused[node]))
    if layer.is_output or not sums:  # two classes, one the other's negative, are one logistic output
        return
    for node, earlier in layer.duplicates.get("negated_weights", ()):
        mirrored = layer.activation in ONE_SIDED
        evidence = {"duplicate_of": earlier, "sign": -1, "mirrored": mirrored, "threshold": 1e-6}
        yield Hit(node, f"{message}, with the opposite sign", evidence)


RULES = (
    Rule("ND101", "non-finite", "node", "error", "a parameter of the node is NaN or infinite", Doc(
        meaning="At least one weight, or the bias, of the node is NaN or infinite. One such number spreads through "
        "every sum that it enters, so the network's output is usually NaN too.",
        measured="The node's parameters are counted that are not finite; one is enough.",
        why="A learning rate above the stability threshold, a division by zero or the logarithm of zero in the loss, "
        "an overflow in half precision, a damaged file.",
        do="Go back to the last checkpoint without the finding, lower the learning rate or clip gradients, and look "
        "for the first step at which the loss was not finite.",
        harmless="Never, unless the node is unused.",
        source="IEEE 754 arithmetic.",
    ), non_finite),
    Rule("ND102", "zero-collapse", "node", "warning", "the node's incoming weights have shrunk to nothing", Doc(
        meaning="The norm of the node's incoming weights is negligible. Whatever the input, the node puts out its "
        "bias: it has turned into a constant. A channel of a norm whose scale is zero shuts the unit that it scales.",
        measured="‖w_i‖ (without the bias) below collapse_ratio times the larger of the layer's median norm and 1/√3, "
        "the norm of a row under torch's default initialiser; the median alone where another layer is as much too "
        "large, since a pair of layers may be rescaled without changing the function. For nodes of one weight, which "
        "may pass through zero, collapse_ratio squared, and without a bias beside it the median alone. Only of weights "
        "that multiply inputs: rows of an embedding, tokens, positions and other parameters by themselves may be zero. "
        "A layer that is exactly zero as a whole, whose gradient is not and around which the network has a way, was "
        "set so: that is a note, and the layers that it still shuts off are not judged.",
        why="Weight decay that the gradient does not balance: a unit that stopped receiving gradient shrinks by the "
        "factor 1 − α·wd every step. Also a deliberate zero initialisation, or pruning.",
        do="While the network still trains: reinitialise the node, and lower the weight decay if many nodes go this "
        "way. For a finished network: prune it; its constant output folds into the next bias and the function does "
        "not change.",
        harmless="Straight after pruning or a zero initialisation that is meant (the last layer of a residual branch). "
        "Without a model an embedding is known by its usual names alone: the row of its padding is zero.",
        source="The degenerate sink of the update map; Krogh and Hertz 1991 for weight decay.",
    ), zero_collapse, ("collapse_ratio",)),
    Rule("ND103", "exploding-norm", "node", "warning", "the node's weights are far larger than its neighbours'", Doc(
        meaning="The node's incoming weights are larger than those of its layer by orders of magnitude. It dominates "
        "every sum that it enters and makes the loss sharp in its own directions.",
        measured="‖w_i‖ above explode_ratio times the median norm of the layer's nodes that have not collapsed; layers "
        "of fewer than three nodes are not judged, nor single numbers that multiply nothing.",
        why="Divergence along one direction, a gradient spike, a bad merge of checkpoints or of quantisation scales.",
        do="Compare with earlier checkpoints to see whether it still grows. Clip gradients or lower the learning rate; "
        "normalise or reinitialise the node.",
        harmless="In embeddings and norm scales with known outlier features, where the network was trained that way.",
        source="Norm growth as a sign of divergence of the update map.",
    ), exploding_norm, ("explode_ratio",)),
    Rule("ND104", "duplicate-weights", "node", "warning", "the node repeats another node of its layer", Doc(
        meaning="The node has the same weights and bias as an earlier node of the layer, up to the sign. Both compute "
        "the same feature, and receive the same gradient if their outgoing weights agree too. With the opposite sign "
        "under ReLU and its like, the two are mirror images and together a linear unit and an absolute value.",
        measured="‖θ_i ∓ θ_j‖ at most 1e-6 of the norm, for any earlier node j that is neither zero nor infinite and "
        "has the same inputs; nodes of one number are not compared. Rows that the probe never looks up are notes.",
        why="Symmetric initialisation (constants, ones), copying or net-to-net widening without noise, symmetric data "
        "augmentation that ties two units.",
        do="While training: reinitialise one of the two. For a finished network: merge them by adding their outgoing "
        "weights; the function does not change.",
        harmless="Right after a function-preserving widening that is to be trained on with noise; with the opposite "
        "sign, in mirrored (looks-linear) initialisations.",
        source="Chen, Goodfellow and Shlens 2016 (Net2Net) on symmetry.",
    ), duplicate_weights),
)  # fmt: skip
