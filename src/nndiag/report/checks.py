"""The formats in which checks are written, by their words."""

from __future__ import annotations

from nndiag.errors import UsageError
from nndiag.records.gate import Verdict

FORMATS = ("rich", "json", "junit", "sarif", "github", "markdown")


def render_checks(verdict: Verdict, format_: str, version: str) -> str:
    """Return a verdict in one of the formats of the gate; ``version`` is that of nndiag.

    Raises:
        UsageError: there is no such format.
    """
    if format_ == "junit":
        from nndiag.report.junit import render_junit

        return render_junit(verdict)
    if format_ == "sarif":
        from nndiag.report.sarif import render_sarif

        return render_sarif(verdict, version)
    if format_ == "github":
        from nndiag.report.github import render_github

        return render_github(verdict)
    from nndiag.report import gate

    renders = {"rich": gate.render_gate, "json": gate.render_gate_json, "markdown": gate.render_gate_markdown}
    if format_ not in renders:
        raise UsageError(f"--format {format_}", "there is no such format", f"use one of {', '.join(FORMATS)}")
    return renders[format_](verdict)
