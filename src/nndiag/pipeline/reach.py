"""How deep the inputs allow a scan to look, and what to add to look deeper."""

from __future__ import annotations

from dataclasses import dataclass

from nndiag.errors import UsageError
from nndiag.pipeline.inputs import Inputs
from nndiag.records.level import Level

_MODEL, _DATA = "--model file.py:callable", "--data FILE"
_LOSS = "--loss cross_entropy (or mse, nll, bce_with_logits)"


@dataclass(frozen=True)
class Reach:
    """The deepest level that is possible; for the next one, what is missing, the flag that gives it, and what
    is gained."""

    level: Level
    missing: str = ""
    flag: str = ""
    gain: str = ""


def reach_of(inputs: Inputs) -> Reach:
    """Return how deep these inputs allow a scan to look."""
    if inputs.model is None:
        after = "" if inputs.probe is not None else f" and {_DATA}"
        gain = "what the nodes do, and which of them are dead"
        return Reach(Level.WEIGHTS, "the model", f"{_MODEL}{after}", gain)
    if inputs.probe is None:
        gain = "activations, and with y in the data gradients and curvature"
        return Reach(Level.WEIGHTS, "data", _DATA, gain)
    if inputs.probe.loss is None:
        return Reach(Level.ACTIVATIONS, "a loss", _LOSS, "influence and curvature")
    if inputs.probe.loss.curvature_needs_targets and not inputs.probe.has_targets:
        return Reach(Level.GRADIENTS, "targets for this loss", "targets y to the data", "curvature")
    return Reach(Level.CURVATURE)


def chosen_level(reach: Reach, wanted: Level | None) -> Level:
    """Return the level wanted, or the deepest that is possible.

    Raises:
        UsageError: the one wanted needs more than was given.
    """
    if wanted is not None and wanted > reach.level:
        raise UsageError(f"--level {wanted.label}", f"it needs {reach.missing}", f"add {reach.flag}")
    return reach.level if wanted is None else wanted


def require_certificate(inputs: Inputs, reach: Reach, level: Level) -> None:
    """Make sure that a certificate can be made of these inputs.

    Raises:
        UsageError: it cannot, for want of the curvature level or of targets.
    """
    if reach.level < Level.CURVATURE:
        raise UsageError("--certificate", f"it needs {reach.missing}", f"add {reach.flag}")
    if level < Level.CURVATURE:
        why = "it needs the curvature level"
        raise UsageError("--certificate", why, f"leave out --level {level.label}")
    if inputs.probe is None or not inputs.probe.has_targets:
        raise UsageError("--certificate", "it needs targets", "add targets y to the data")


def hints(reach: Reach, level: Level) -> tuple[str, ...]:
    """Return a sentence that names the flag that gets more, where there is more to get."""
    if level < reach.level:
        return (f"leave out --level {level.label} to look as deep as {reach.level.label}",)
    return (f"add {reach.flag} to see {reach.gain}",) if reach.flag else ()
