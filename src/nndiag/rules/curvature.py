"""Findings that the curvature of the nodes' blocks shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nndiag.rules.base import Context, Doc, Hit, Rule, short, where
from nndiag.rules.gradients import acts_detached
from nndiag.rules.nodes import starts_at_zero, while_active
from nndiag.rules.outputs import answers_the_same

if TYPE_CHECKING:
    from nndiag.records.measured import Floats, LayerMeasures, Mask


def flat(layer: LayerMeasures, context: Context, curvature: Floats) -> Mask:
    """Return the mask of nodes on a plateau, given their largest curvature, ``(..., nodes)``.

    Flat: ``λ_max ≤ ratio · median λ_max`` of the layer (of the model where the whole layer is flat), or a
    relaxation time ``1/(αλ_max)`` beyond the horizon. A flat node that still moves the output while it is active has
    nothing left to learn, and is none. In a network that answers the same on all samples the layer is no measure: there
    a node is flat that does nothing by itself.
    """
    scale = context.scales.layer.get("lambda_max", 0.0) or context.scales.model.get("lambda_max", 0.0) * 1e-3
    mask: Mask = curvature <= context.threshold("flat_curvature") * scale
    relaxation, facts = layer.per_node.get("relaxation_steps"), context.measured.optimizer
    if relaxation is not None and facts is not None and facts.horizon:
        mask = mask | (relaxation > facts.horizon)
    kernel, usual = layer.per_node.get("tangent_kernel"), context.scales.layer.get("tangent_kernel", 0.0)
    if kernel is not None:
        mask = mask & (while_active(layer, kernel) <= context.threshold("flat_influence") * usual)
    nothing = idle(layer, context)
    return mask if nothing is None else mask | nothing


def idle(layer: LayerMeasures, context: Context) -> Mask | None:
    """Return the mask of hidden nodes that do nothing in a network that answers the same on all samples, else ``None``.

    ``‖θ_i‖ √k_i ≤ ratio · scale / √n``, with ``k_i`` the node's trace of the tangent kernel: by how much the outputs
    change, to first order, if its parameters go; all such nodes together by no more than ``ratio · scale`` as a root
    sum of squares. The scale is one for logits, else the range of the targets. Rescaling homogeneous layers does not
    change it. In networks that do answer a branch may start small.
    """
    found = context.measured.predictions
    if (
        "tangent_kernel" not in layer.per_node
        or layer.is_output
        or found is None
        or not answers_the_same(context)
        or any(map(starts_at_zero, context.measured.layers))  # behind a start nobody sees yet what nodes do
    ):
        return None
    edge = context.threshold("output_ratio") * found.scale / layer.nodes**0.5
    moved = _moved(layer)
    mask: Mask = (moved > 0) & (moved <= edge)  # where it is zero nothing depends on the node in any network
    return mask


def _moved(layer: LayerMeasures) -> Floats:
    moved: Floats = layer.per_node["parameter_norm"] * layer.per_node["tangent_kernel"] ** 0.5
    return moved


def unstable(layer: LayerMeasures, context: Context, margin: Floats) -> Mask:
    """Return the mask of nodes above the optimiser's stability threshold, given their margin, ``(...,
    nodes)``."""
    mask: Mask = margin > context.threshold("stability_margin")
    return mask


def negative(layer: LayerMeasures, context: Context, curvature: Floats) -> Mask:
    """Return the mask of nodes with significant negative curvature, given their smallest, ``(..., nodes)``.

    Significant: ``−λ_min`` beyond a share of the larger of the node's own ``λ_max`` and the layer's median, or what
    would count as flat in the whole model. Where it was not taken (NaN) nothing is.
    """
    flat_in_model = context.threshold("flat_curvature") * context.scales.model.get("lambda_max", 0.0)
    least = max(context.scales.layer.get("lambda_max", 0.0), flat_in_model)
    usual = layer.per_node["lambda_max"].clip(min=least)
    mask: Mask = -curvature > context.threshold("negative_curvature") * usual
    return mask


def plateau(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``1/(αλ_max)`` beyond the horizon or ``λ_max`` negligible, no way down, and no influence."""
    curvature = layer.per_node.get("lambda_max")
    if curvature is None:
        return
    relaxation = layer.per_node.get("relaxation_steps")
    scale = context.scales.layer.get("lambda_max", 0.0)
    facts = context.measured.optimizer
    message = "flat in every direction: no step changes the loss, and the output does not depend on it"
    detached, nothing = acts_detached(layer), idle(layer, context)
    downward = {hit.index for hit in saddle(layer, context)}
    for i in where(flat(layer, context, curvature)):
        if i in downward:
            continue
        evidence: dict[str, float | str] = {
            "lambda_max": float(curvature[i]),
            "threshold": context.threshold("flat_curvature") * scale,
        }
        if relaxation is not None and facts is not None and facts.horizon:
            evidence |= {"relaxation_steps": float(relaxation[i]), "horizon": facts.horizon}
        if detached[i]:
            yield Hit(i, "flat in every direction: no step changes it", evidence)
        elif nothing is not None and nothing[i]:
            evidence |= {"outputs_moved": float(_moved(layer)[i]), "reason": "outputs"}
            yield Hit(
                i,
                "flat in every direction: the outputs are the same on all samples, and hardly move without it",
                evidence,
            )
        else:
            yield Hit(i, message, evidence)


def source(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``λ_max`` (preconditioned under Adam) above the largest stable eigenvalue."""
    margin = layer.per_node.get("stability_margin")
    rate = context.learning_rate(layer)
    if margin is None or not rate:
        return
    over = where(unstable(layer, context, margin))
    safe = rate / max((float(margin[i]) for i in over), default=1.0)
    message = (
        f"a learning rate of {short(rate)} overshoots here: all of the layer is stable below {short(safe)}"
    )
    for i in over:
        evidence = {
            "stability_margin": float(margin[i]), "threshold": context.threshold("stability_margin"),
            "largest_stable_lr": float(rate / margin[i]),
        }  # fmt: skip
        yield Hit(i, message, evidence, sure=not context.few)


def saddle(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``−λ_min`` beyond its error, its standard error, and a share of the node's and the layer's own scale.

    A note where the gradient is not small against it: ``‖g‖ > distance · |λ_min| ‖θ‖``.
    """
    smallest = layer.per_node.get("lambda_min")
    if smallest is None or "lambda_max" not in layer.per_node:
        return
    sure = smallest + layer.per_node.get("lambda_min_error", 0.0)
    mask = negative(layer, context, sure)
    folds, noise = layer.per_fold.get("lambda_min"), None
    if folds is not None and len(folds) > 1:
        noise = folds.std(axis=0, ddof=1) / len(folds) ** 0.5
        mask &= -sure > context.threshold("negative_signal") * noise
    rests = _at_rest(layer, context)
    for i in where(mask):
        evidence = {
            "lambda_min": float(smallest[i]), "lambda_max": float(layer.per_node["lambda_max"][i]),
            "threshold": context.threshold("negative_curvature"),
        }  # fmt: skip
        if noise is not None:
            evidence["lambda_min_se"] = float(noise[i])
        if rests[i]:
            yield Hit(i, "at a saddle: along one of its directions the loss falls both ways", evidence)
        else:
            yield Hit(
                i,
                "on its way down: the slope curves downward along one of its directions",
                evidence,
                note=True,
            )


def _at_rest(layer: LayerMeasures, context: Context) -> Mask:
    """Return the mask of nodes whose gradient is small beside what their negative curvature makes of them.

    Along the direction of ``λ_min`` the gradient of the quadratic model vanishes within ``‖g‖/|λ_min|``: a node is at a
    saddle where that is a small part of its own size.
    """
    downward = -layer.per_node["lambda_min"]
    gradient = layer.per_node.get("gradient_norm", math.inf)
    distance = context.threshold("saddle_distance") * layer.per_node["parameter_norm"]
    mask: Mask = gradient <= distance * downward
    return mask


RULES = (
    Rule("ND401", "plateau", "node", "warning", "no direction of the node relaxes, and it has no influence", Doc(
        meaning="Even along the steepest direction of its own parameters the loss is flat at this node, and the "
        "output does not depend on it. Gradient steps leave it where it is.",
        measured="λ_max of the node's block of the curvature at most flat_curvature of its layer's median, or a "
        "relaxation time 1/(αλ_max) longer than the steps trained; and its trace of the empirical neural tangent "
        "kernel, taken where it is active, at most flat_influence of the layer's median. A flat node that moves the "
        "output has nothing left to learn and is not meant, nor one that does so on few samples. In a network "
        "that answers the same on all samples (ND501) no node is a measure for others: there it is a hidden node for "
        "which ‖θ_i‖√k_i, by how much the outputs would change without it, is at most output_ratio/√n of a "
        "probability, or of the targets' range, in a layer of n nodes.",
        why="A dead or saturated unit, no influence downstream, inputs of zero; weights of the whole network that "
        "decay has shrunk until nothing gets through.",
        do="See its cause. If its weights are fine and nothing is dead, a larger learning rate for it, or decay.",
        harmless="In a finished network, where it means that the node can go.",
        source="The linearised update map, |1 − αλ| near one: relaxation times.",
    ), plateau, ("flat_curvature", "flat_influence", "output_ratio")),
    Rule("ND402", "source", "node", "error", "the node's curvature is above the optimiser's stability threshold", Doc(
        meaning="Along a direction of this node's own parameters the optimiser's step overshoots and grows: "
        "linearised at this checkpoint, the update map repels.",
        measured="λ_max of the node's block plus weight decay over 2(1+β)/α (SGD with momentum β), or of the "
        "block preconditioned by Adam's own second moments over (2+2β₁)/((1−β₁)α), above stability_margin. The block "
        "is a part of the full Hessian, so the full one is at least as sharp. With fewer than few_samples samples it "
        "is a warning.",
        why="A learning rate too large for where the training has come, a spike, the edge of stability overshot.",
        do="Lower the learning rate, at least for this node's group, below the value given; or clip, or warm up again.",
        harmless="At the edge of stability full-batch training hovers at a margin of one and still makes progress.",
        source="Cohen et al. 2021 and 2022 on the edge of stability.",
    ), source, ("stability_margin", "few_samples")),
    Rule("ND403", "negative-curvature", "node", "warning", "the loss curves downward along one of its directions", Doc(
        meaning="Among the directions of this node's own parameters there is one along which the loss is curved "
        "downward, about as much as it usually curves upward here. Where its gradient is small beside that, the node "
        "sits at a saddle and not in a valley: gradient descent leaves such a place, slowly at first. Where it is not, "
        "the node is on a slope that gets steeper, and this is a note.",
        measured="λ_min of the node's exact Hessian block: −λ_min, less the solver's error, above negative_curvature "
        "times the larger of the node's λ_max and its layer's median, and above negative_signal standard errors over "
        "the folds. A note unless ‖g‖ is at most saddle_distance · |λ_min| ‖θ‖: the quadratic model has its saddle no "
        "farther off, in sizes of the node. Gauss-Newton blocks have no negative eigenvalue, so nodes whose "
        "curvature_kind is ggn are not judged; --curvature hessian computes all of them exactly.",
        why="A network early in its training, where it is the rule; a node on its way out of a saddle; a symmetry "
        "between nodes that is not yet broken; a smooth activation that bends downward under a large error.",
        do="Train on. Where it stays from checkpoint to checkpoint, perturb the node, or raise its learning rate.",
        harmless="At the beginning of training, and in few nodes of a network that is still learning.",
        source="Cauchy's interlacing theorem: the block's λ_min bounds that of the full Hessian from above. Dauphin et "
        "al. 2014 on saddle points.",
    ), saddle, ("negative_curvature", "negative_signal", "saddle_distance")),
)  # fmt: skip
