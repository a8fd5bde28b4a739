"""Findings on what the whole network puts out: one answer for all samples, classes left out, wrong corners."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from nndiag.records.level import Level
from nndiag.rules.base import Context, Doc, Hit, Rule, count, short
from nndiag.rules.nodes import starts_at_zero

if TYPE_CHECKING:
    from nndiag.records.measured import Floats, Measured

ESCAPE_CONSTANT = 0.5
"""``C`` of ``t₀ = C/(Δ·π(a*))``: the smallest over simulated single-state softmax bandits (0.5003),
and what ``π' = 2ηΔπ²`` near a corner gives for ``η = 1``."""

CORNER = 0.9
"""A policy is at a corner where one probability is at least this; with it the best action's is at most 0.1, and the
loss of reward at least 0.9 of the gap, as the bound has it."""


def output_collapse(measured: Measured, context: Context) -> Iterator[Hit]:
    """``max_c (max_n y_{n,c} − min_n y_{n,c}) ≤ ratio · scale`` though the inputs differ."""
    found = measured.predictions
    if found is None or not answers_the_same(context):
        return
    edge = context.threshold("output_ratio") * found.scale
    start = any(layer.is_output and starts_at_zero(layer) for layer in measured.layers)
    message = f"the network answers the same on all of {count(context.samples, 'sample')}, whatever the input"
    if start:
        message += ": its last layer starts at zero"
    evidence = {"output_spread": found.spread, "threshold": edge, "samples": context.samples}
    yield Hit(None, message, evidence, sure=not context.few, note=start)


def answers_the_same(context: Context) -> bool:
    """Whether the outputs are constant over a probe whose inputs are not."""
    found = context.measured.predictions
    if found is None or not found.inputs_vary or context.samples < 2 or found.scale <= 0:
        return False
    return found.spread <= context.threshold("output_ratio") * found.scale


def class_never_predicted(measured: Measured, context: Context) -> Iterator[Hit]:
    """Classes that are the label of ``K`` samples or more and the most probable of none."""
    choices = None if measured.predictions is None else measured.predictions.choices
    if choices is None or choices.present is None:
        return
    least = context.threshold("class_samples")
    pairs = list(zip(choices.predicted, choices.present, strict=True))
    lost = [i for i, (chosen, labelled) in enumerate(pairs) if chosen == 0 and labelled >= least]
    if not lost:
        return
    named = ", ".join(str(i) for i in lost[:8]) + (", …" if len(lost) > 8 else "")
    there = sum(labelled > 0 for _, labelled in pairs)
    fewest = min(pairs[i][1] for i in lost)
    bound = 1 - 0.05 ** (1 / fewest)
    which = f"class {named} is" if len(lost) == 1 else f"classes {named} are"
    message = (
        f"{which} never predicted, of {there:,} {'class' if there == 1 else 'classes'} in the probe "
        f"(it finds less than {100 * bound:.2g} % of such samples, with 95 % confidence)"
    )
    evidence = {
        "classes": len(lost), "first_class": lost[0], "present_classes": there, "threshold": least,
        "fewest_samples": fewest,
    }  # fmt: skip
    yield Hit(None, message, evidence)


def gravity_well(measured: Measured, context: Context) -> Iterator[Hit]:
    """``π_n(a*) ≤ edge`` while another action has 0.9 or more, for more than a share of the samples."""
    choices = None if measured.predictions is None else measured.predictions.choices
    if choices is None or choices.right is None:
        return
    known = choices.right == choices.right  # NaN where a sample has no label
    edge, share = context.threshold("well_probability"), context.threshold("well_share")
    inside = known & (choices.right <= edge) & (choices.highest >= CORNER)
    if not known.any() or inside.sum() <= share * known.sum():
        return
    typical = median(choices.right[inside].tolist())
    steps = escape_steps(typical)
    message = (
        f"{count(int(inside.sum()), 'sample')} of {int(known.sum()):,} sit in a wrong corner of the softmax: "
        + (
            f"a policy gradient needs at least {short(steps)} steps to leave it"
            if math.isfinite(steps)
            else "a policy gradient never leaves it, the right class has no probability at all"
        )
    )
    evidence = {
        "samples_in_well": int(inside.sum()), "threshold": share, "right_probability": typical,
        "escape_steps": steps if math.isfinite(steps) else None, "reward_gap": 1.0,
    }  # fmt: skip
    yield Hit(None, message, evidence, sure=not context.few)


def escape_steps(right: float, gap: float = 1.0) -> float:
    """Return ``t₀ = C/(Δ·π(a*))``, before which full-gradient ascent does not leave the corner.

    Args:
        right: probability ``π(a*)`` of the best action.
        gap: reward gap ``Δ`` between the best action and the others.

    The learning rate on the logits is at most one; a smaller one takes longer in proportion.
    """
    return ESCAPE_CONSTANT / (gap * right) if right > 0 else math.inf


def entropy_collapse(measured: Measured, context: Context) -> Iterator[Hit]:
    """``E[H(p)] ≤ ratio · ln C`` while the most probable class is wrong far more often than that says."""
    choices = None if measured.predictions is None else measured.predictions.choices
    if choices is None or len(choices.predicted) < 2 or context.samples < 2:
        return
    edge = context.threshold("entropy_ratio") * math.log(len(choices.predicted))
    if choices.entropy > edge:
        return
    evidence: dict[str, float] = {"entropy": choices.entropy, "threshold": edge}
    if choices.present is None or choices.found is None or not sum(choices.present):
        message = "its choices are all but certain on this data; without targets nobody knows whether they are right"
        yield Hit(None, message, evidence, note=True)
        return
    wrong = 1 - sum(choices.found) / sum(choices.present)
    said = 1 - float(_of_labelled(choices.highest, choices.right).mean())
    evidence |= {"wrong": wrong, "wrong_as_it_says": said}
    if wrong - said > context.threshold("entropy_error"):
        message = (
            f"its choices are all but certain, and {100 * wrong:.2g} % of them wrong where it says "
            f"{100 * said:.2g} %: nothing is left to explore"
        )
        yield Hit(None, message, evidence, sure=not context.few)


def _of_labelled(highest: Floats, right: Floats | None) -> Floats:
    return highest if right is None else highest[right == right]


RULES = (
    Rule("ND501", "output-collapse", "model", "error", "the network answers the same whatever the input", Doc(
        meaning="The outputs are constant over the probe: nothing of the input gets through the network. As a rule it "
        "puts out the mean of the targets.",
        measured="The largest over the outputs of highest minus lowest value on the probe, at most output_ratio times "
        "the same of the targets; of probabilities, under a softmax or sigmoid, at most output_ratio; without targets "
        "beside the outputs' root mean square. Not where all inputs, or all targets, are the same. With fewer than "
        "few_samples samples it is a warning.",
        why="A layer all of whose units are dead or saturated, weights that decay took to zero, a learning rate that "
        "threw the network out, inputs that were scaled to nothing.",
        do="Mend the layer that the message names, the first through which nothing gets; else look for one with ND252. "
        "Go back to the checkpoint before the loss stopped at that of a constant answer.",
        harmless="Before the first step, where the last layer starts at zero: then it is a note.",
        source="The definition; He et al. 2015 and Lu et al. 2019 on networks born dead.",
    ), output_collapse, ("output_ratio", "few_samples"), Level.ACTIVATIONS),
    Rule("ND502", "class-never-predicted", "model", "warning", "a class of the probe is the answer to no sample", Doc(
        meaning="There are samples of the class in the probe, and the network calls none of them, nor any other, so.",
        measured="Classes that are the label of at least class_samples samples and the most probable class of none. "
        "Classes that no label names are not observed, and nothing is said of them.",
        why="Few samples of the class in training, a bias of its output that ran away, labels in another order than "
        "the network learnt, a head that was widened and not trained.",
        do="Compare the labels of the probe with those of the training. Weigh or sample the class more; look at the "
        "output node's own findings and bias.",
        harmless="Where the class is rare and the costs are equal: the most probable answer need never be it.",
        source="A recall of zero; the bound is the rule of three.",
    ), class_never_predicted, ("class_samples",), Level.ACTIVATIONS),
    Rule("ND503", "softmax-gravity-well", "model", "warning", "the softmax sits in wrong corners it leaves slowly", Doc(
        meaning="On many samples one wrong class or action has nearly all of the probability and the right one hardly "
        "any. A policy gradient, or any loss that weighs the gradient with the probability itself, is tiny there: "
        "training looks converged for a very long time.",
        measured="Samples whose right class has at most well_probability while another has 0.9 or more, above "
        "well_share of all. With π(a*) their median probability and the reward gap Δ = 1, the escape takes at least "
        "t₀ = C/(Δ·π(a*)) steps of full-gradient ascent with a learning rate of at most one on the logits; C = 0.5 "
        "is the smallest over simulated single-state bandits (benchmarks/gravity_well.py).",
        why="An initial policy with logits that are too large, rewards that favoured a wrong action early, a learning "
        "rate that drove the softmax into a corner; labels in another order than the network learnt.",
        do="Start the logits near zero, add an entropy bonus or label smoothing, lower the temperature of the logits; "
        "or train with cross-entropy, whose gradient does not vanish there.",
        harmless="Under cross-entropy the corner is left quickly: then it says that the network is wrong and sure, "
        "and the number of steps holds for policy gradients only.",
        source="Mei et al. 2020, Escaping the gravitational pull of softmax, theorem on the escape time.",
    ), gravity_well, ("well_probability", "well_share"), Level.ACTIVATIONS),
    Rule("ND504", "entropy-collapse", "model", "warning", "the choices are certain, and not right", Doc(
        meaning="The probabilities have no entropy left: the network always takes one choice and never tries another, "
        "although it is wrong far more often than it says. A policy like that has stopped exploring.",
        measured="The mean of −Σ p ln p over the samples at most entropy_ratio of ln C for C classes, while the share "
        "of wrong answers is above one minus the mean largest probability by more than entropy_error. A network that "
        "is as right as it is sure has no such finding; without targets it is a note.",
        why="Logits that grow without bound, no entropy bonus, a temperature near zero, training long after the "
        "training data are fitted.",
        do="Add an entropy bonus, raise the temperature, clip or decay the last layer's weights; go back to a "
        "checkpoint with entropy left.",
        harmless="For a policy that is meant to be deterministic in the end.",
        source="Williams and Peng 1991 on entropy in policy gradients; Guo et al. 2017 on calibration.",
    ), entropy_collapse, ("entropy_ratio", "entropy_error"), Level.ACTIVATIONS),
)  # fmt: skip
