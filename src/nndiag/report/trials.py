"""What trying the actions on the probe showed, in words."""

from __future__ import annotations

from nndiag.records.report import Diagnosis, Number
from nndiag.report.groups import Advice
from nndiag.report.numbers import counted, number, percent


def tried(advice: Advice) -> str:
    """Return what is known of the nodes of one piece of advice by trial; empty where none was made."""
    if not advice.verified:
        return ""
    who = "" if advice.verified == len(advice.nodes) else f"{advice.verified:,} of them "
    how = f"{who}tried on the probe"
    if advice.kind in ("lower_lr", "raise_lr"):
        how += " by one step at that rate"
    if advice.change is None:
        return how
    if advice.change == 0:
        return f"{how}: the outputs stay as they are"
    alone = "" if advice.verified == 1 else ", each alone"
    return f"{how}{alone}: outputs change {_by(advice.change)}"


def together(diagnosis: Diagnosis) -> str | None:
    """Return what all actions did together, ``None`` where they were not tried."""
    found = diagnosis.model.verified
    if found is None:
        return None
    count = found.get("actions")
    said = f"All {counted(count, 'action')} together" if isinstance(count, int) and count > 1 else "Tried"
    before, after = _known(found.get("loss_before")), _known(found.get("loss_after"))
    losses = f"loss {number(before)} → {number(after)}, " if before is not None else ""
    change = _known(found.get("output_change"))
    effect = "the outputs stay as they are"
    if change != 0:
        effect = f"outputs change {_by(change)}"
    return f"{said}: {losses}{effect}"


def _by(change: float | None) -> str:
    """Return by how much, of the largest output."""
    shown = percent(change)
    return f"by less than {shown[2:]}" if shown.startswith("< ") else f"by up to {shown}"


def _known(value: Number) -> float | None:
    return value if isinstance(value, float) else None
