"""Findings about the whole network as one point of the loss; they need its certificate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nndiag.records.level import Level
from nndiag.rules.base import Context, Doc, Hit, Rule, short

if TYPE_CHECKING:
    from nndiag.records.measured import Measured


def not_stationary(measured: Measured, context: Context) -> Iterator[Hit]:
    """``‖∇L‖ > signal · SE(∇L)``, and above rounding."""
    found = measured.certificate
    if found is None or found.kind != "not_stationary":
        return
    noise = found.gradient_noise
    above = f"{short(found.gradient_norm / noise)} times its sampling noise" if noise else "above rounding"
    evidence = {
        "gradient_norm": found.gradient_norm,
        "gradient_noise": noise,
        "gradient_rounding": found.gradient_rounding,
        "threshold": None if noise is None else context.threshold("stationary_signal") * noise,
    }
    yield Hit(None, f"training has not come to rest on this data: the gradient is {above}", evidence)


def saddle(measured: Measured, context: Context) -> Iterator[Hit]:
    """``λ_min < −flat · max(|λ_max|, |λ_min|)`` where the gradient is zero or noise."""
    found = measured.certificate
    if found is None or found.kind != "saddle":
        return
    scale = max(abs(found.lambda_max), abs(found.lambda_min))
    evidence = {
        "lambda_min": found.lambda_min,
        "lambda_max": found.lambda_max,
        "lambda_min_error": found.lambda_min_error,
        "threshold": -context.threshold("flat_direction") * scale,
    }
    rest = "vanishes" if found.stationary == "exact" else "is not told from zero"
    if found.lambda_max <= 0:
        message = f"the gradient {rest} at a maximum: the loss falls in every direction"
    else:
        share = short(-found.lambda_min / found.lambda_max)
        message = f"the gradient {rest} at a saddle: the loss falls along a direction with −{share} of λ_max"
    yield Hit(None, message, evidence)


RULES = (
    Rule("ND505", "not-stationary", "model", "info", "the gradient of the probe's loss is more than noise", Doc(
        meaning="The checkpoint is no stationary point of the loss on this data: gradient descent would go on from "
        "here. What the curvature says of minima and saddles does not apply.",
        measured="‖∇L‖ over all trainable parameters above stationary_signal times its standard error over the draw of "
        "the samples, √(E‖g_n − g‖²/N), taken from up to 32 random groups of them; and above what rounding can make.",
        why="Training was stopped early, or its steps are too large to settle; a probe from other data than the "
        "network was trained on; weight decay, label smoothing or augmentation, which balance a gradient that the "
        "plain loss still has.",
        do="Train on with a smaller learning rate if the loss should be lower. Give a probe from the training data to "
        "judge training, and more samples to judge it sharply.",
        harmless="Nearly always: early stopping is a regulariser, and few networks are trained to a stationary point.",
        source="The standard error of a mean; Cauchy's condition of the first order.",
    ), not_stationary, ("stationary_signal",), Level.CURVATURE, "--certificate"),
    Rule("ND506", "saddle", "model", "info", "the loss falls along a direction where its gradient vanishes", Doc(
        meaning="The gradient is zero, or no more than sampling noise, and yet the point is no minimum: the full "
        "Hessian has negative curvature. Descent leaves along that direction, slowly where the curvature is small.",
        measured="λ_min of the Hessian of the probe's mean loss over all trainable parameters, by Lanczos, below "
        "−flat_direction times the largest magnitude. The value found lies above the true one, so that the sign is "
        "proved whatever the residual.",
        why="A plateau that training is crossing, a symmetric start, units that repeat each other; in classifiers that "
        "fit their data, the small negative eigenvalues of a loss that falls for ever as the weights grow.",
        do="Train on: noise finds the way down. From an exact saddle, as after a symmetric initialisation, add noise "
        "to the weights or reinitialise what repeats.",
        harmless="Where λ_min is a few percent of λ_max or less: large networks stop like that as a rule.",
        source="The second-order condition of a minimum; Sagun et al. 2018 on the spectra of trained networks.",
    ), saddle, ("flat_direction",), Level.CURVATURE, "--certificate"),
)  # fmt: skip
