"""Advice for a run that went wrong: the last checkpoint worth going back to, and what to change from there."""

from __future__ import annotations

from collections import Counter

from nndiag.records.report import Diagnosis, Report
from nndiag.report.course import Course, course, trailing
from nndiag.report.numbers import number

_BLAME = {"ND402": "lr", "ND102": "weight_decay", "ND201": "lr", "ND202": "lr", "ND101": "lr"}
"""What to change for the findings that bring a layer down."""
_BREAKING = ("ND101", "ND402")
"""Findings on single nodes that are reason enough."""
_WORDS = {"lr": "learning rate", "weight_decay": "weight decay"}


def turning_back(report: Report) -> str | None:
    """Return where to train on from where something is broken at the end that was not at first."""
    run = course(report)
    starts = [layer.since for layer in run.layers if layer.since is not None]
    starts += [
        start
        for (code, _), counts in run.present.items()
        if code in _BREAKING and (start := trailing([count > 0 for count in counts])) is not None
    ]
    if len(report.checkpoints) < 2 or not starts or min(starts) == 0:
        return None
    start = min(starts)
    return (
        f"Go back to {run.at(start - 1)}, the last before this{_change(run, report.checkpoints[-1], start)}"
    )


def _change(run: Course, last: Diagnosis, start: int) -> str:
    """Return what to change, by the finding that most nodes have where it began or, of layers that fell, at the end."""
    fallen = {layer.name for layer in run.layers if layer.since == start}
    nodes: Counter[str] = Counter()
    for (code, layer), counts in run.present.items():
        if layer in fallen:
            nodes[code] += max(counts[start], counts[-1])
        elif code in _BREAKING:
            nodes[code] += counts[start]
    settings = last.checkpoint.optimizer or {}
    for code in sorted(_BLAME, key=lambda code: (code not in _BREAKING, -nodes[code])):
        value = settings.get(setting := _BLAME[code])
        if nodes[code] and isinstance(value, int | float) and value > 0:
            return f", and train on with a smaller {_WORDS[setting]} than {number(value)}"
    return ""
