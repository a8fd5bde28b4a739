"""The entries of the findings about runs in the catalogue. Import stays cheap: ``nndiag rules`` must print at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from nndiag.rules import RULES as OF_ONE
from nndiag.rules.base import Doc, Hit, Rule


def _later(name: str) -> Callable[[Any, Any], Iterator[Hit]]:
    """Return a rule's function by name, imported (with numpy) when it is first called."""

    def find(subject: Any, context: Any) -> Iterator[Hit]:
        found: Iterator[Hit] = getattr(import_module("nndiag.comparing.rules"), name)(subject, context)
        return found

    return find


_HALF = "Compared are points half a run apart, so that the number of checkpoints does not matter."

RULES: tuple[Rule, ...] = (
    Rule("ND701", "newly-degenerate", "node", "error", "degenerate at the end of the run and not at its beginning", Doc(
        meaning="The node was usable when the run began. At its last checkpoint it has collapsed or lies on a plateau: "
        "training has broken it.",
        measured="The verdicts of the first and the last checkpoint. A node that the first checkpoint's level could "
        "not judge does not count as usable then. Where the last verdict does not hold in every fold of the probe, it "
        "is a warning.",
        why="Too large a learning rate or a spike of the gradient throws biases and weights to where a unit never "
        "fires; weight decay that outweighs the loss; a layer further on that died and passes no gradient back.",
        do="Go back to the last checkpoint before most of the nodes died, and train on with a smaller learning rate "
        "or a clipped gradient, or less weight decay. `nndiag heal` reinitialises what is dead.",
        harmless="Where a few units of a wide layer die and the loss does not notice.",
        source="Dohare et al. 2024 on the loss of plasticity; Lu et al. 2019 on dying ReLUs.",
    ), _later("newly_degenerate")),
    Rule("ND702", "absorbed", "node", "error", "degenerate for half of the run without leaving that state", Doc(
        meaning="The node entered a state that training does not leave: it has been degenerate for so long, with "
        "weights that point where they pointed, that going on will not bring it back.",
        measured="Degenerate at the last checkpoint at or before T − absorbed_share·T and at the end T, and the "
        "direction of its weights in between unchanged (moving_weights), so that no gradient moved it, whether there "
        "were checkpoints to see that or not. Without directions every checkpoint in between must say so. A node that "
        "was degenerate from the first checkpoint on is a warning: the run did not do it; so is one whose last verdict "
        "does not hold in every fold of the probe.",
        why="No sample's gradient reaches it, and nothing before it moves enough to wake it.",
        do="Reinitialise it (`nndiag heal --goal train`) or prune it (`--goal deploy`); waiting does not help.",
        harmless="In a network that is larger than its task needs.",
        source="The project's mathematics, section 7: states not left.",
    ), _later("absorbed"), ("absorbed_share", "moving_weights")),
    Rule("ND703", "shrinking-to-zero", "node", "warning", "the norm of its weights falls steadily towards zero", Doc(
        meaning="The node is on its way to collapse (ND102): the norm of its weights has fallen all along the run, and "
        "at least to half within the last half.",
        measured="‖w(T)‖ ≤ shrink_ratio · ‖w(T/2)‖, and ‖w‖ fell over the first half and the last quarter too. "
        + _HALF,
        why="Weight decay larger than what the loss pulls back; an L1 penalty; a gate or scale that closes.",
        do="Lower the weight decay, or take this layer out of it. Where the layer is not needed, let it go and prune.",
        harmless="Where sparsity is wanted, or early in training with a large initialisation.",
        source="ρ_t = ‖θ_{t+1}‖/‖θ_t‖ below 1 persistently: zero collapse.",
    ), _later("shrinking"), ("shrink_ratio",)),
    Rule("ND704", "diverging", "node", "error", "its weights grow without bound along a settled direction", Doc(
        meaning="The norm multiplies while the direction stays: the solution runs away to infinite scale. What the "
        "node decides may still be usable; its numbers soon are not.",
        measured="‖θ(T)‖ ≥ growth_ratio · ‖θ(T/2)‖, still growing at the end at 0.3 of that pace or more, while the "
        "median distance of unit weight vectors from checkpoint to checkpoint is at most turned_back and the node "
        "is no source. " + _HALF,
        why="A loss without a finite minimum (separable classes, a policy gradient) with a large learning rate.",
        do="Add weight decay or normalise the logits; lower the learning rate; stop earlier.",
        harmless="Not as a rule; at a logarithm's pace it is ND707, which many good classifiers show.",
        source="Soudry et al. 2018 on the implicit bias of gradient descent: ‖θ‖ → ∞ along a fixed direction.",
    ), _later("diverging"), ("growth_ratio", "turned_back")),
    Rule("ND705", "oscillating-divergence", "node", "error", "its weights grow and turn back from step to step", Doc(
        meaning="Every step overshoots by more than the one before: the learning rate is above what the curvature "
        "allows, and the run is exploding.",
        measured="The growth of ND704 (growth_ratio), while the direction turns back (median distance of successive "
        "unit weight "
        "vectors above turned_back) or the node is a source, above its stability threshold, at most checkpoints of "
        "the last half.",
        why="The learning rate exceeds 2/λ_max of the node (2(1+β)/λ_max with momentum β).",
        do="Go back to the checkpoint before the growth and take a smaller learning rate; `nndiag explain ND402` says "
        "which is stable.",
        harmless="Never.",
        source="Stability of gradient descent; Cohen et al. 2021 on the edge of stability.",
    ), _later("oscillating"), ("growth_ratio", "turned_back")),
    Rule("ND706", "bias-frozen", "node", "info", "its bias stands still while its weights move", Doc(
        meaning="Over the last half of the run the bias did not change while the weights did.",
        measured="The range of the bias over the last half of the run at most frozen_bias of the layer's largest "
        "|bias|, while direction or norm of the weights changed by more than moving_weights.",
        why="The bias is not in the optimiser, is frozen, or a norm behind the layer takes it out of the loss.",
        do="Nothing, if that is intended. Before a BatchNorm leave the bias out; else check the parameter groups.",
        harmless="Nearly always.",
        source="The project's mathematics, section 7: bias drift.",
    ), _later("bias_frozen"), ("frozen_bias", "moving_weights")),
    Rule("ND707", "loss-flat-norm-growing", "model", "warning", "the loss has settled and the parameters still grow",
    Doc(
        meaning="A flat loss is no fixed point: the parameters go on growing, about as a logarithm of time, and the "
        "predictions only become more confident.",
        measured="The mean loss of the third and fourth quarter of the run agree to settled_loss of its range, "
        "while ‖θ‖ "
        "grows over the last half by growing_norm or more, by at least half of what it grew from T/4 to T/2, and "
        "with a slope in ln t beyond twice its standard error.",
        why="Cross-entropy on data that the network separates has its minimum at infinity.",
        do="Stop, or add weight decay or label smoothing; judge by the validation loss, not by the training loss.",
        harmless="Where confidence does not matter: the decision boundary has settled.",
        source="Soudry et al. 2018; Lyu and Li 2020 on homogeneous networks.",
    ), _later("loss_flat_norm_growing"), ("settled_loss", "growing_norm")),
    Rule("ND708", "recovered", "node", "info", "was degenerate for long and is no longer", Doc(
        meaning="The node was collapsed or on a plateau for a good part of the run, and at its end it is not.",
        measured="Degenerate for recovered_share of the time or more, a state counting half the way to the checkpoints "
        "before and after, and not at the last one.",
        why="Layers before it moved, its parameters were reinitialised, or noise carried it over.",
        do="Nothing.",
        harmless="Always.",
        source="The project's mathematics, section 7: transitions of verdicts.",
    ), _later("recovered"), ("recovered_share",)),
)  # fmt: skip

EVERY_RULE: tuple[Rule, ...] = tuple(sorted((*OF_ONE, *RULES), key=lambda rule: rule.code))
"""The whole catalogue, in order of code."""
