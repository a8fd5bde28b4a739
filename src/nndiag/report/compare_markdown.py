"""A comparison as GitHub-flavoured Markdown."""

from __future__ import annotations

from nndiag.records.comparison import Comparison
from nndiag.report.compare_course import compared_caution, compared_course
from nndiag.report.compare_events import compared_advice, compared_events
from nndiag.report.inert import inert
from nndiag.report.numbers import percent

_ICONS = {"error": "❌", "warning": "⚠️", "info": "ℹ️", "good": "✅"}


def render_comparison_markdown(comparison: Comparison) -> str:
    """Return the story, the share of degenerate nodes along the run, and what to do."""
    run = compared_course(comparison)
    events = compared_events(comparison, run)
    lines = [f"# nndiag compare: {_ICONS[events[0].kind]} {inert(events[0].sentence)}", ""]
    lines += [f"- {_ICONS[one.kind]} {inert(one.sentence)}" for one in events[1:]]
    caution = compared_caution(comparison)
    lines += ["", inert(caution)] if caution else []
    lines += ["", f"Share of degenerate nodes per {run.word}:", ""]
    lines += [
        "| layer | " + " | ".join(inert(label) for label in run.labels) + " |",
        "|---" * (len(run.labels) + 1) + "|",
    ]
    for layer in run.layers:
        shares = (percent(None if n is None else n / max(layer.nodes, 1)) for n in layer.degenerate)
        lines.append("| " + " | ".join([inert(layer.name), *(inert(one) for one in shares)]) + " |")
    advice = compared_advice(comparison, run)
    if advice:
        lines += ["", "## What to do", "", *(f"- {inert(one)}" for one in advice)]
    return "\n".join(lines) + "\n"
