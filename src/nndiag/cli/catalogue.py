"""``nndiag rules`` and ``nndiag explain``: the catalogue, without torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nndiag.errors import UsageError


def rules(
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="List the thresholds with units and defaults.")
    ] = False,
) -> None:
    """List every finding: code, name, what it is on, severity, level."""
    if thresholds:
        _thresholds()
        return
    from nndiag.rules import RULES

    for rule in RULES:
        level = rule.level.label if rule.level else "-"
        print(f"{rule.code}  {rule.name:<18} {rule.on:<6} {rule.severity:<8} {level:<12} {rule.summary}")


def explain(
    code: Annotated[str, typer.Argument(help="A code such as ND201, or a name such as dead.")],
) -> None:
    """Say what a finding means, how it is measured, and what to do."""
    from nndiag.rules import RULES

    wanted = code.strip().lower()
    rule = next((r for r in RULES if wanted in (r.code.lower(), r.name)), None)
    if rule is None:
        raise UsageError(f"explain {code}", "no finding has this code or name", "see `nndiag rules`")
    import shutil
    import textwrap

    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    level = rule.level.label if rule.level else "run"
    print(f"{rule.code} {rule.name}: {rule.summary}")
    print(f"{rule.severity}, on a {rule.on}, needs the {level} level")
    doc = rule.doc
    for heading, text in (
        ("What it means", doc.meaning),
        ("How it is measured", doc.measured),
        ("Why it happens", doc.why),
        ("What to do", doc.do),
        ("When it is harmless", doc.harmless),
        ("Source", doc.source),
    ):
        print(f"\n{heading}")
        print(textwrap.fill(text, width - 1, initial_indent="  ", subsequent_indent="  "))
    if rule.thresholds:
        from nndiag.rules.thresholds import THRESHOLDS

        print("\nThresholds")
        for threshold in THRESHOLDS:
            if threshold.name in rule.thresholds:
                print(f"  {threshold.name} = {threshold.default:g} {threshold.unit}")


def _thresholds() -> None:
    from nndiag.rules.thresholds import THRESHOLDS

    for threshold in THRESHOLDS:
        sys.stdout.write(
            f"{threshold.name:<20} {threshold.default:<8g} {threshold.unit}: {threshold.decides}\n"
        )
