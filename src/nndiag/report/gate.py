"""What the gate decided, for people: on the screen, as Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

from nndiag.errors import printable
from nndiag.records.finite import finite
from nndiag.records.gate import Check, Verdict

_MOST = 20
_WIDEST = 100


def render_gate(verdict: Verdict) -> str:
    """Return the verdict in words: what failed, where, by how much, and the command that shows more."""
    count, failed = len(verdict.checks), verdict.failed
    if failed:
        lines = [f"✗ The gate failed: {len(failed):,} of {_counted(count)} did not pass."]
    else:
        lines = [f"✓ The gate passed: {_counted(count)}."]
    lines.append(f"  {printable(verdict.subject)}")
    said = verdict.policy or "none given: no finding may be an error"
    lines.append(f"  policy: {printable(said)}")
    lines += [f"  {verdict.caution}"] if verdict.caution else []
    lines.append("")
    for check in verdict.failed[:_MOST]:
        lines += _told(check)
    if len(failed) > _MOST:
        lines.append(f"  … and {len(failed) - _MOST:,} more (--format json lists all)")
    for check in (check for check in verdict.checks if check.passed and "known" in check.message):
        lines.append(f"  ✓ {_title(check)}: {printable(check.message)}")
    return "\n".join(lines).rstrip("\n") + "\n"


def render_gate_json(verdict: Verdict) -> str:
    """Return the verdict as ``{"passed", "rules": [{"rule", "layer", "value", "limit", "passed", "message"}]}``.

    ``"caution"`` is there where there is one.
    """
    rows = [
        {
            "rule": check.rule, "layer": check.layer, "value": finite(check.value), "limit": finite(check.limit),
            "passed": check.passed, "message": check.message,
        }
        for check in verdict.checks
    ]  # fmt: skip
    caution = {"caution": verdict.caution} if verdict.caution else {}
    return json.dumps({"passed": verdict.passed, **caution, "rules": rows}, indent=2) + "\n"


def render_gate_markdown(verdict: Verdict) -> str:
    """Return the verdict as GitHub-flavoured Markdown: a summary for a step's page."""
    from nndiag.report.inert import inert

    failed = verdict.failed
    head = f"❌ {len(failed):,} of {_counted(len(verdict.checks))} did not pass"
    lines = [f"# nndiag gate: {head if failed else '✅ passed, ' + _counted(len(verdict.checks))}", ""]
    lines += [
        f"{inert(verdict.subject)}, policy: {inert(verdict.policy or 'no finding may be an error')}",
        "",
    ]
    lines += [inert(verdict.caution), ""] if verdict.caution else []
    if verdict.checks:
        lines += ["| | rule | layer | what | look closer |", "|---|---|---|---|---|"]
    for check in verdict.checks:
        cells = (
            "✅" if check.passed else "❌", check.rule, check.layer or "", check.message, check.look,
        )  # fmt: skip
        lines.append("| " + " | ".join(inert(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _told(check: Check) -> Iterator[str]:
    yield f"  ✗ {_title(check)}: {printable(check.message)}"
    if check.nodes and check.layer is not None:
        yield f"    nodes {_ranges(check.nodes)}"
    if check.look:
        yield f"    look closer: {printable(check.look)}"


def _title(check: Check) -> str:
    return printable(check.rule if check.layer is None else f"{check.rule}, layer {check.layer}")


def _ranges(nodes: tuple[int, ...]) -> str:
    from nndiag.report.numbers import ranges

    return ranges(nodes)


def _counted(count: int) -> str:
    return f"{count:,} check{'' if count == 1 else 's'}"
