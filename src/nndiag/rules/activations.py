"""Findings that the units' outputs on the probe show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from nndiag.rules.base import Context, Doc, Hit, Rule, count, short, where
from nndiag.rules.gradients import acts_detached
from nndiag.rules.nodes import while_active
from nndiag.rules.weights import exploding_norm

if TYPE_CHECKING:
    from nndiag.records.measured import LayerMeasures, Mask

EXACTLY_FLAT = frozenset(
    "relu relu6 clamp maximum hardtanh threshold hardsigmoid hardswish softshrink hardshrink".split()
)
"""Activations with a side on which the slope is exactly zero."""

RECTIFIERS = frozenset(["relu", "clamp", "maximum", "threshold"])
"""Those of them that are linear on the other side."""

SWITCH_RANGE = 0.1
"""A saturated smooth unit whose output ranges over more than this takes both ends of its activation."""

DOUBT = 0.05
"""Chance at which silence is no proof: that of a unit that does fire and shows it nowhere."""
RARER = 0.1
"""Share of the layer's usual firing rate that enough samples rule out."""
USUAL_RATE = 0.5
"""Firing rate that is taken for usual where no unit of the layer fires."""


@dataclass(frozen=True)
class Silence:
    """What it proves that a unit never fires: ``sure`` where one that fires as often as is usual in its layer would
    have been seen; ``enough`` samples rule out a firing rate of ``rate``, a tenth of that.
    """

    sure: bool
    enough: int
    rate: float


def silence(layer: LayerMeasures, context: Context) -> Silence:
    """Return what silence on this probe proves: ``(1 − r)^M ≤ 0.05`` for ``M`` samples and positions.

    ``r`` is the median firing rate over the units of the layer that fire. Fewer than ``few_samples`` samples prove
    nothing, whatever the rate.
    """
    active, opened = layer.per_node["active_fraction"], layer.per_fold.get("open_count")
    firing = active > 0
    usual = median(active[firing].tolist()) if firing.any() else USUAL_RATE
    places = float(context.samples)
    if opened is not None and firing.any():
        places = max(places, float((opened.sum(axis=0)[firing] / active[firing]).max()))
    rate = RARER * min(usual, USUAL_RATE)
    enough = math.ceil(math.log(DOUBT) / math.log1p(-rate))
    missed = (1 - min(usual, USUAL_RATE)) ** places
    return Silence(not context.few and missed <= DOUBT, enough, rate)


def _switches(layer: LayerMeasures) -> Mask:
    """Return the mask of units whose output varies, if their activation is flat wherever they take it."""
    spread = layer.per_node["output_range"]
    mask: Mask = spread > (0.0 if layer.activation in EXACTLY_FLAT else SWITCH_RANGE)
    return mask


def dead(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``φ'(z_{n,t,i}) = 0`` for every sample ``n`` and position ``t``, and one output."""
    active = layer.per_node.get("active_fraction")
    if active is None or layer.activation not in EXACTLY_FLAT:
        return
    bound, proof = 1 - DOUBT ** (1 / max(context.samples, 1)), silence(layer, context)
    message = (
        f"never active on {count(context.samples, 'sample')}{'' if proof.sure else ', which proves little'} "
        f"(it fires on less than {100 * bound:.2g} % of such data, with 95 % confidence)"
    )
    if not proof.sure:
        rate = f"{100 * proof.rate:.2g} %, a tenth of what is usual here"
        message += f"; {count(proof.enough, 'sample')} would rule out {rate}"
    noisy, far = layer.per_node.get("jitter_active"), _bias_ran_away(layer)
    usual = message
    for i in where((active == 0) & ~_switches(layer)):
        evidence: dict[str, float | int | str | bool | None] = {
            "active_fraction": 0.0, "threshold": 0.0, "samples": context.samples, "rate_below": bound,
        }  # fmt: skip
        if not proof.sure:
            evidence["samples_enough"] = proof.enough
        message = usual
        if far[i]:
            message, evidence["reason"] = f"{usual}; its bias ran away", "bias"
        if noisy is None:
            yield Hit(i, message, evidence)
        else:
            said = (
                "under noise on the inputs it fires: it is at its edge"
                if noisy[i]
                else "nor under noise on the inputs"
            )
            yield Hit(i, f"{message}; {said}", evidence | {"jitter_active": float(noisy[i])})


RAN_AWAY = 5.0
"""Times the standard deviation of its pre-activation that the bias of a unit lies below zero where it ran away."""


def _bias_ran_away(layer: LayerMeasures) -> Mask:
    """Return the mask of units whose bias alone holds them down: ``b_i < −5 std(z_i)`` with weights that still act."""
    nothing = layer.per_node["weight_norm"] * 0
    bias, spread = layer.per_node.get("bias", nothing), layer.per_node.get("preactivation_std", nothing)
    mask: Mask = (spread > 0) & (bias < -RAN_AWAY * spread)
    return mask


def saturated(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``|φ'(z)| < 1e-3 max|φ'|`` for every sample and position: at one end of a smooth activation, or at both."""
    active = layer.per_node.get("active_fraction")
    if active is None:
        return
    switches = _switches(layer)
    saturated = (active == 0) & (switches if layer.activation in EXACTLY_FLAT else True)
    samples = count(context.samples, "sample")
    usual = f"saturated on all of {samples}: the slope of its {layer.activation} is nearly zero"
    for i in where(saturated):
        evidence = {
            "active_fraction": 0.0, "threshold": 0.0, "samples": context.samples, "switches": bool(switches[i]),
        }  # fmt: skip
        yield Hit(i, f"{usual}, though its output still switches" if switches[i] else usual, evidence)


def constant_output(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``std(y_i) ≤ ratio · median_j std(y_j)``."""
    spread = layer.per_node.get("output_std")
    if spread is None or context.samples < 2:
        return
    edge = context.threshold("constant_ratio") * context.scales.layer.get("output_std", 0.0)
    mean = layer.per_node["output_mean"]
    for i in where(spread <= edge):
        evidence = {"output_std": float(spread[i]), "threshold": edge, "output_mean": float(mean[i])}
        yield Hit(i, "puts out the same number on every sample", evidence)


def dormant(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``E|y_i| / mean_j E|y_j| ≤ τ``, the mean over the nodes whose weights have not exploded."""
    score = layer.per_node.get("dormancy")
    if score is None or layer.activation is None:
        return
    loud = {hit.index for hit in exploding_norm(layer, context)}
    quiet = [i not in loud for i in range(layer.nodes)]
    usual = float(score[quiet].mean()) if loud and any(quiet) else 1.0
    edge = context.threshold("dormancy") * usual
    message = f"nearly silent: at most {short(100 * context.threshold('dormancy'))} % of its layer's mean activation"
    matters = _matters(layer, context)
    for i in where(score <= edge):
        evidence = {"dormancy": float(score[i]), "threshold": edge}
        if matters[i]:
            yield Hit(i, f"{message}, yet the output depends on it when it fires", evidence, note=True)
        else:
            yield Hit(i, message, evidence)


def _matters(layer: LayerMeasures, context: Context) -> Mask:
    """Return the mask of nodes for which ``√E[‖∂f/∂z_i‖² | active] · std(y_i)`` is more than a share of its median.

    That is what taking one out would do to the outputs, to first order. Or they were seen to change without the node,
    where no gradient leads to it.
    """
    none = layer.per_node["dormancy"] * 0
    reach = while_active(layer, layer.per_node.get("output_reach", none) ** 2) ** 0.5
    effect = reach * layer.per_node.get("output_std", none)
    there = effect[effect > 0].tolist()
    mask: Mask = effect > (context.threshold("dormant_effect") * median(there) if there else math.inf)
    return mask | acts_detached(layer)


def always_on(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``φ'(z) = 1`` for every sample and position."""
    active = layer.per_node.get("active_fraction")
    if active is None or layer.activation not in RECTIFIERS:
        return
    for i in where(active == 1):
        message = f"active on all of {count(context.samples, 'sample')}: it acts as a linear unit"
        yield Hit(i, message, {"active_fraction": 1.0, "threshold": 1.0})


def duplicate_output(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``|corr(y_i, y_j)| = 1`` for an earlier node ``j``; of one input, every output is a multiple."""
    if layer.fan_in < 2:
        return
    for node, earlier in layer.duplicates.get("outputs", ()):
        evidence = {"duplicate_of": earlier, "threshold": 1e-9}
        yield Hit(node, "puts out a multiple of an earlier node's output on every sample", evidence)


def dead_data(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``D = (1/N) Σ_n 1{max_i z_{n,i} ≤ 0}`` above the threshold and above twice the chance ``2^-nodes``."""
    share = layer.per_layer.get("dead_data_fraction")
    edge = max(context.threshold("dead_data"), 2.0 ** (1 - layer.nodes))
    if share is None or share <= edge:
        return
    lost = round(share * context.samples)
    lost_of = f"{count(lost, 'sample')} of {context.samples:,}"
    message = f"{lost_of} activate no unit of the layer: nothing of them gets through"
    yield Hit(None, message, {"dead_data_fraction": share, "threshold": edge})


def rank_collapse(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """``exp(H(σ/Σσ))`` of the centred outputs at or below the threshold, and well below the layers before."""
    rank = layer.per_layer.get("effective_rank")
    room = min(layer.nodes, context.samples)
    edge = max(1.5, context.threshold("rank_ratio") * room)
    if rank is None or room < 8 or rank > edge:
        return
    before = _largest_rank_before(context)
    if layer.fan_in < 8 if before is None else rank > context.threshold("rank_drop") * before:
        return
    outputs = sum(other.nodes for other in context.measured.layers if other.is_output)
    if rank > 0 and 0 < outputs <= 2:
        return  # one logit needs one dimension
    message = f"its {layer.nodes:,} outputs span {short(rank)} effective dimensions"
    yield Hit(None, message, {"effective_rank": rank, "threshold": edge})


def _largest_rank_before(context: Context) -> float | None:
    """Return the largest effective rank of the layers before, ``None`` where there is none."""
    before = context.measured.layers[: context.place]
    ranks = [other.per_layer["effective_rank"] for other in before if "effective_rank" in other.per_layer]
    return max(ranks, default=None)


def layer_degenerate(layer: LayerMeasures, context: Context) -> Iterator[Hit]:
    """More than half of the nodes dead, collapsed or on a plateau."""
    share = context.degenerate / layer.nodes
    edge = context.threshold("degenerate_fraction")
    if share > edge:
        message = f"{context.degenerate:,} of its {layer.nodes:,} nodes are dead, collapsed or on a plateau"
        evidence: dict[str, float | str] = {"degenerate_fraction": share, "threshold": edge}
        if context.shared is not None:
            message += f": {context.shared[1]} ({context.shared[0]})"
            evidence["shared_cause"] = context.shared[0]
        sure = not context.few or context.collapsed / layer.nodes > edge
        yield Hit(None, message, evidence, sure)


RULES = (
    Rule("ND201", "dead", "node", "warning", "the unit is on the flat side of its activation on every sample", Doc(
        meaning="The unit never activates on the probe: for a ReLU, its pre-activation is at or below zero for every "
        "sample and position. It puts out one constant, receives no gradient and cannot recover by gradient steps.",
        measured="active_fraction, the share of samples and positions at which the activation is not flat, is exactly "
        "zero, and its output is one number. The bias ran away where it is more than five standard deviations of the "
        "pre-activation below zero. For N samples and none active the unit's true firing rate is below "
        "1 − 0.05^(1/N) at 95 % confidence (about 3/N). Unsteady where N is below few_samples, or where a unit that "
        "fires as often as is usual in its layer, the median rate r, would be silent too with more than 5 %: (1 − r)^N "
        "over samples and positions.",
        why="A step that pushed the bias far down (learning rate too large), weight decay, an input layer that died "
        "before it, an unlucky initialisation.",
        do="While the network still trains: reinitialise it (incoming weights new, outgoing zero: the function does "
        "not change). For a finished network: prune it; the outputs on the probe do not change. Many dead units in "
        "one checkpoint: lower the learning rate or use a leaky activation.",
        harmless="When the probe does not cover the data: a unit may be alive on inputs that the probe lacks. A few "
        "per cent of dead units are common in networks that trained well.",
        source="Lu et al. 2019, Dying ReLU and Initialization; the rule of three for the confidence bound.",
        sure="As sure as the samples are many: 400 without a spark rule out a firing rate above 0.75 %, 8 samples only "
        "one above 31 %. The message says the bound for this probe; where that proves little it says what "
        "would be enough, and the node is marked unsteady. `--jitter` tells a unit far below its threshold from one at "
        "its edge.",
    ), dead, ("few_samples",)),
    Rule("ND202", "saturated", "node", "warning", "the unit's smooth activation is flat on every sample", Doc(
        meaning="The slope of the unit's activation (tanh, sigmoid, GELU, …) is nearly zero wherever the probe takes "
        "it, so almost no gradient passes and the unit hardly learns.",
        measured="The share of samples and positions with |φ'(z)| at least 1e-3 of the steepest slope is exactly zero. "
        "A unit that takes both ends of its activation still switches, and is told apart (evidence: switches); one of "
        "a clipped activation (hardtanh, ReLU6) that does so is saturated, not dead.",
        why="Weights or biases that grew too large, inputs that are not normalised, a learning rate that threw the "
        "unit out.",
        do="Reinitialise it while training, or normalise the layer's inputs; prune it from a finished network, its "
        "nearly constant output folded into the next bias. A unit that switches carries information: leave it in a "
        "finished network, and scale its weights down while training.",
        harmless="Where the unit is meant to be a switch, for example a gate that is always open.",
        source="Glorot and Bengio 2010, section 3.",
    ), saturated),
    Rule("ND203", "constant-output", "node", "warning", "the unit puts out one number on every sample", Doc(
        meaning="The unit's output does not depend on the input: to the layers after it, it is a bias.",
        measured="Standard deviation of the output over samples and positions at most constant_ratio of the layer's "
        "median.",
        why="A dead unit (then ND201 is the cause), collapsed weights, a saturated activation, a zero scale in a norm, "
        "a recurrent unit whose gates are shut, or inputs that are all constant themselves.",
        do="Prune it and fold its output into the next bias: the function on the probe does not change. While "
        "training: reinitialise it.",
        harmless="For the output of a unit that the probe does not exercise.",
        source="Unit pruning with compensation in the bias: replacement by the mean.",
    ), constant_output, ("constant_ratio",)),
    Rule("ND204", "dormant", "node", "warning", "the unit is nearly silent beside its layer", Doc(
        meaning="The unit's mean absolute activation is a tiny share of its layer's. Networks that keep training on "
        "changing targets lose plasticity as such units pile up.",
        measured="E|y_i| divided by the layer's mean of it, at most the threshold dormancy, τ = 0.025; the mean over "
        "the nodes whose weights have not exploded (ND103). Where taking it out would change the output, to first "
        "order √E‖∂f/∂z‖²·std(y) above dormant_effect of the layer's median, the first mean over the samples on which "
        "it is active, it is a rare detector and this is a note.",
        why="As for dead units, before the end; small incoming weights; a feature that is rare in the probe.",
        do="While training: reinitialise (ReDo). For a finished network it is a candidate for pruning, to be verified "
        "on data: a rare feature may matter.",
        harmless="Sparse detectors of rare inputs score low and are alive: look at active_fraction and sensitivity.",
        source="Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning.",
    ), dormant, ("dormancy", "dormant_effect")),
    Rule("ND205", "always-on", "node", "info", "the rectifier never rectifies: the unit is linear", Doc(
        meaning="The unit is active for every sample and position, so its activation does nothing on this probe.",
        measured="active_fraction is exactly one, for an activation that is linear where it is not flat.",
        why="A large positive bias, or inputs of one sign.",
        do="Nothing, usually. Many such units make a layer linear and waste depth.",
        harmless="Usually: it is information, not a defect.",
        source="The definition of the rectifier.",
    ), always_on),
    Rule("ND206", "duplicate-output", "node", "warning", "the unit repeats another unit's output", Doc(
        meaning="On every sample the unit's output is the same multiple of an earlier unit's, up to a constant: the "
        "two carry one feature.",
        measured="Correlation of the two outputs over samples and positions within 1e-9 of ±1, both active in at "
        "least 32 places.",
        why="Duplicate or parallel weights, symmetric initialisation, inputs that are copies of each other.",
        do="Merge the two (add the outgoing weights, scaled): the function on the probe does not change. While "
        "training: reinitialise one.",
        harmless="In ensembles or symmetric architectures where it is meant.",
        source="Srinivas and Babu 2015, Data-free parameter pruning.",
    ), duplicate_output),
    Rule("ND250", "dead-data", "layer", "warning", "samples that activate no unit of the layer", Doc(
        meaning="For these samples every unit of the layer is on its flat side: nothing of the input passes, the "
        "output is the same for all of them, and no gradient of theirs reaches this layer or those before it.",
        measured="D, the share of the samples for which no unit is active at any position; above the threshold "
        "dead_data, and in narrow layers above twice the chance that all units are off, 2^-nodes.",
        why="Biases that drifted down, a layer that is too narrow, inputs far from those it was trained on.",
        do="Raise the biases of the layer by the gap (bias warm-up: δ = −min_n max_i z + ε), widen it, or use a leaky "
        "slope.",
        harmless="When those samples are meant to give nothing, such as padding.",
        source="Coverage of the data by active units: the dead-data fraction of prototype-surface control theory.",
    ), dead_data, ("dead_data",)),
    Rule("ND251", "rank-collapse", "layer", "warning", "the layer's outputs have collapsed to few dimensions", Doc(
        meaning="The outputs of the layer's units over the probe lie close to a space of very few dimensions, so the "
        "layers after it see little of the input.",
        measured="Effective rank: the exponential of the entropy of the normalised singular values of the centred "
        "outputs; at or below the larger of 1.5 and rank_ratio times the smaller of nodes and samples, and at most "
        "rank_drop of the largest rank of a layer before. A first layer of fewer than eight inputs is not judged, nor "
        "a network of one or two outputs, which needs no more than one dimension.",
        why="Dead or duplicate units, deep linear stretches without normalisation, collapsed self-supervised targets.",
        do="Look at the nodes' findings first. Else add normalisation or residual connections, or lower the learning "
        "rate.",
        harmless="Where the input itself has few dimensions, or before a narrow output.",
        source="Roy and Vetterli 2007, The effective rank.",
    ), rank_collapse, ("rank_ratio", "rank_drop")),
    Rule("ND252", "layer-degenerate", "layer", "error", "more than half of the layer's nodes are degenerate", Doc(
        meaning="More than half of the layer's nodes are dead, collapsed or on a plateau. The layer has lost most of "
        "its capacity.",
        measured="Nodes whose verdict is collapsed or plateau (dead units are on a plateau), over all nodes of the "
        "layer: above degenerate_fraction. Where nine in ten of them have one cause, the message names it. With fewer "
        "than few_samples samples it is a warning, unless the weights alone show it.",
        why="See the findings of its nodes, which share a cause as a rule.",
        do="While training: go back to the checkpoint before it happened and lower the learning rate, or reinitialise "
        "the nodes. For a finished network that works: prune; the layer is wider than it needs to be.",
        harmless="In networks much wider than the task, where the output is good all the same.",
        source="The definition of this tool.",
    ), layer_degenerate, ("degenerate_fraction", "few_samples")),
)  # fmt: skip
