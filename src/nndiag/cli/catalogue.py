"""``nndiag rules`` and ``nndiag explain``: the catalogue, without torch."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from nndiag.errors import UsageError

if TYPE_CHECKING:
    from nndiag.rules import Rule


def rules(
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="List the thresholds with units and defaults.")
    ] = False,
) -> None:
    """List every finding: code, name, what it is on, severity, level."""
    if thresholds:
        from nndiag.rules.thresholds import THRESHOLDS

        for threshold in THRESHOLDS:
            _entry(f"{threshold.name:<20} {threshold.default:<8g} ", f"{threshold.unit}: {threshold.decides}")
        return
    from nndiag.comparing.catalogue import EVERY_RULE
    from nndiag.rules.explaining import level_word

    widest = max(len(rule.name) for rule in EVERY_RULE)
    for rule in EVERY_RULE:
        head = f"{rule.code}  {rule.name:<{widest}} {rule.on:<5} {rule.severity:<7} {level_word(rule):<11} "
        _entry(head, rule.summary)


def explain(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="A code such as ND201, or a name such as dead.")
    ],
) -> None:
    """Say what a finding means, how it is measured, and what to do."""
    from nndiag.rules.explaining import headline, sections, subtitle, thresholds_of

    rule = _rule(code)
    width = max(40, min(100, shutil.get_terminal_size((80, 24)).columns) - 1)
    print(headline(rule))
    print(subtitle(rule))
    for heading, text in sections(rule):
        print(f"\n{heading}")
        print(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    used = thresholds_of(rule)
    if used:
        print("\nThresholds")
        for threshold in used:
            print(f"  {threshold.name} = {threshold.default:g} {threshold.unit}")


def _rule(word: str) -> Rule:
    from nndiag.comparing.catalogue import EVERY_RULE
    from nndiag.config.suggest import nearest

    wanted = word.strip().lower()
    for rule in EVERY_RULE:
        if wanted in (rule.code.lower(), rule.name):
            return rule
    close = nearest(wanted, [known for rule in EVERY_RULE for known in (rule.code, rule.name)])
    do = f"did you mean {close}? See `nndiag rules`" if close else "see `nndiag rules`"
    raise UsageError(f"explain {word}", "no finding has this code or name", do)


def _entry(head: str, text: str) -> None:
    """Print a line of a table; on a terminal its last column is wrapped, for other programs it is not."""
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size((80, 24)).columns - 1, len(head) + 20)
        text = f"\n{' ' * len(head)}".join(textwrap.wrap(text, width - len(head)))
    print(f"{head}{text}")
