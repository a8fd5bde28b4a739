"""Checks as workflow commands of GitHub Actions, within what one step may annotate.

Source: GitHub Docs, "Workflow commands for GitHub Actions"; "at most 10 warning annotations and 10 error annotations a
step".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nndiag.errors import printable
from nndiag.records.gate import Check, Verdict

MOST = 10
"""Annotations of one kind that GitHub shows of a step."""

_WORDS = {"error": "error", "warning": "warning", "info": "warning"}


def render_github(verdict: Verdict) -> str:
    """Return one annotation a failed rule and layer; where there are too many, the last says how many are left out."""
    lines: list[str] = []
    for kind in ("error", "warning"):
        failed = [check for check in verdict.failed if _WORDS[check.gravity] == kind]
        lines += _annotations(kind, failed, verdict.subject)
    if verdict.caution:
        lines.append(f"::notice title=nndiag::{_data(verdict.caution)}")
    if not verdict.failed:
        lines.append(f"::notice title=nndiag::{_data(f'all {len(verdict.checks)} checks passed')}")
    return "\n".join(lines) + "\n"


def _annotations(kind: str, failed: Sequence[Check], subject: str) -> Iterator[str]:
    shown = failed if len(failed) <= MOST else failed[: MOST - 1]
    for check in shown:
        where = "model" if check.layer is None else f"layer {check.layer}"
        title = _property(f"nndiag: {check.rule}, {where}")
        look = f" ({check.look})" if check.look else ""
        yield f"::{kind} title={title}::{_data(f'{subject}: {check.message}{look}')}"
    if len(shown) < len(failed):
        left = len(failed) - len(shown)
        yield f"::{kind} title=nndiag::{_data(f'and {left} more of this kind; see the full report')}"


def _data(text: str) -> str:
    """Return text as the message of a workflow command, which it can neither end nor begin anew."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
