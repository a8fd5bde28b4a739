"""Every threshold of the rules: its name, default, unit and what it decides.

Set by name in ``nndiag.toml``, ``[rules.thresholds]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nndiag.config.suggest import nearest
from nndiag.errors import UsageError


@dataclass(frozen=True)
class Threshold:
    """One number that a rule compares with."""

    name: str
    default: float
    unit: str
    decides: str


FEW_SAMPLES = 20
"""With fewer samples, what a probe does not show proves little."""

THRESHOLDS = (
    Threshold("collapse_ratio", 1e-3, "× the layer's median weight norm, or × its initial scale 1/√3",
              "below it a node's incoming weights count as collapsed (ND102)"),
    Threshold("explode_ratio", 100.0, "× the layer's median weight norm",
              "above it a node's weights count as exploded (ND103)"),
    Threshold("constant_ratio", 1e-5, "× the layer's median standard deviation",
              "below it an output counts as constant (ND203)"),
    Threshold("dormancy", 0.025, "× the layer's mean absolute activation", "at or below it a unit is dormant (ND204)"),
    Threshold("dormant_effect", 0.01, "× the layer's median effect on the output",
              "above it a dormant unit matters when it fires, and is a note (ND204)"),
    Threshold("few_samples", FEW_SAMPLES, "samples",
              "with fewer, what the probe does not show is unsteady (ND201) and no error (ND252, ND402)"),
    Threshold("dead_data", 0.05, "share of the samples",
              "above it (and above twice the chance 2^-nodes) a layer loses data (ND250)"),
    Threshold("rank_ratio", 0.01, "× the smaller of nodes and samples",
              "at or below it (and always at 1.5) a layer's outputs have collapsed in rank (ND251)"),
    Threshold("rank_drop", 0.5, "× the largest effective rank of the layers before",
              "above it a low rank is the input's own and no collapse (ND251)"),
    Threshold("degenerate_fraction", 0.5, "share of the nodes", "above it a layer is degenerate (ND252)"),
    Threshold("zero_ratio", 1e-9, "× the largest of the layer",
              "at or below it a gradient counts as zero (ND301, ND304)"),
    Threshold("no_torque", 0.01, "share of the gradient", "below it a node does not turn (ND302)"),
    Threshold("torque_gradient", 0.1, "× the layer's median gradient norm", "below it torque is not judged (ND302)"),
    Threshold("torque_signal", 2.0, "× the standard error of the mean gradient",
              "below it a gradient is noise and torque is not judged (ND302, ND350)"),
    Threshold("low_torque", 0.1, "mean torque ratio", "below it a layer turns too little (ND350)"),
    Threshold("flat_curvature", 1e-6, "× the layer's median λ_max", "at or below it curvature is negligible (ND401)"),
    Threshold("flat_influence", 1e-4, "× the layer's median tangent kernel",
              "above it a flat node has nothing left to learn and is no plateau (ND401)"),
    Threshold("negative_curvature", 0.3, "× the larger of the node's λ_max and the layer's median",
              "−λ_min beyond it is significant (ND403)"),
    Threshold("negative_signal", 2.0, "× the standard error of λ_min over the folds",
              "below it negative curvature may be noise (ND403)"),
    Threshold("saddle_distance", 0.1, "× |λ_min| ‖θ‖ of the node",
              "up to it a gradient is small enough for a saddle; above it negative curvature is a note (ND403)"),
    Threshold("explode_gradient", 100.0, "× the median gradient of the layer, and of all layers",
              "above it a node's gradient has exploded (ND303)"),
    Threshold("stability_margin", 1.0, "× the optimiser's threshold", "above it a node is a source (ND402)"),
    Threshold("flip_residual", 0.25, "share of the step", "up to it the next step takes the node back (ND404)"),
    Threshold("flip_band", 0.01, "× the optimiser's threshold",
              "as near to it as this an eigenvalue of the update map is at −1 (ND404)"),
    Threshold("sharp_margin", 0.5, "× the optimiser's threshold",
              "from it on a layer's sharpest node is sharp (ND450)"),
    Threshold("sharp_ratio", 10.0, "× the median over the other layers",
              "and from it on it is the layer's own (ND450)"),
    Threshold("output_ratio", 1e-3, "× the targets' range, or of a probability",
              "up to it the outputs are one constant (ND501)"),
    Threshold("class_samples", 10.0, "samples of a class", "with fewer, never predicting it proves little (ND502)"),
    Threshold("well_probability", 1e-3, "probability of the right class",
              "up to it, beside a wrong one of 0.9, a sample is in a gravity well (ND503)"),
    Threshold("well_share", 0.1, "share of the samples", "above it the wells are the network's (ND503)"),
    Threshold("entropy_ratio", 0.01, "× ln of the number of classes", "up to it the entropy has collapsed (ND504)"),
    Threshold("entropy_error", 0.1, "share of the samples",
              "more wrong than it says by more than that, it is sure and not right (ND504)"),
    Threshold("stationary_signal", 2.0, "× the standard error of the gradient",
              "above it the model is not stationary (ND505)"),
    Threshold("flat_direction", 1e-3, "× the largest |λ| of the full Hessian",
              "up to it a direction is flat, below minus it the model is at a saddle (ND506)"),
    Threshold("absorbed_share", 0.5, "share of the run",
              "a node that is degenerate for so long at its end has been absorbed (ND702)"),
    Threshold("shrink_ratio", 0.5, "× the weight norm half a run earlier",
              "at or below it a node shrinks to zero (ND703)"),
    Threshold("growth_ratio", 3.0, "× the norm half a run earlier", "at or above it a node diverges (ND704, ND705)"),
    Threshold("turned_back", 1.0, "distance of unit weight vectors",
              "above it in the median a diverging node turns back from checkpoint to checkpoint (ND705)"),
    Threshold("frozen_bias", 1e-6, "× the largest |bias| of the layer, over the last half of the run",
              "up to it a bias stands still (ND706)"),
    Threshold("moving_weights", 0.02, "× the weight norm, over the last half of the run",
              "above it the weights beside a frozen bias move (ND706)"),
    Threshold("settled_loss", 1e-3, "× the range of the loss over the run",
              "up to it the loss of the last two quarters is the same (ND707)"),
    Threshold("growing_norm", 2e-3, "× the parameter norm, over the last half of the run",
              "from it on the parameters still grow (ND707)"),
    Threshold("recovered_share", 0.25, "share of the run",
              "a node that was degenerate for so long and is not at the end has recovered (ND708)"),
)  # fmt: skip


def thresholds(changed: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return all thresholds by name, with changes applied.

    Raises:
        UsageError: a change names no threshold.
    """
    values = {t.name: t.default for t in THRESHOLDS}
    for name, value in (changed or {}).items():
        if name not in values:
            close = nearest(name, list(values))
            do = f"did you mean {close}? See `nndiag rules --thresholds`"
            raise UsageError(
                f"[rules.thresholds] {name}",
                "there is no such threshold",
                do if close else "see `nndiag rules --thresholds`",
            )
        values[name] = float(value)
    return values
