"""``nndiag gate``: pass or fail from a report, without torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nndiag.cli.endings import silence_stdout
from nndiag.errors import UsageError, printable

if TYPE_CHECKING:
    from nndiag.config.policy import Policy
    from nndiag.gating.baseline import Baseline
    from nndiag.records.gate import Verdict

FormatName = Literal["rich", "json", "junit", "sarif", "github", "markdown"]


def _option(name: str, metavar: str | None, words: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, help=words, rich_help_panel="Options"
    )
    return found


def gate(
    report: Annotated[
        Path,
        typer.Argument(
            metavar="REPORT", help="What `nndiag scan --output json=FILE` wrote.", show_default=False
        ),
    ],
    policy: Annotated[
        Path | None, _option("--policy", "FILE", "A TOML file with a [policy]; it counts alone.")
    ] = None,
    baseline: Annotated[
        Path | None, _option("--baseline", "FILE", "Known troubles: a baseline, or an earlier report.")
    ] = None,
    update_baseline: Annotated[
        bool, _option("--update-baseline", None, "Rewrite the baseline with what is found now, and pass.")
    ] = False,
    format_: Annotated[
        FormatName, _option("--format", "FORMAT", "rich, json, junit, sarif, github or markdown.")
    ] = "rich",
    output: Annotated[
        list[str] | None, _option("--output", "FORMAT=FILE", "The same into a file. Repeatable.")
    ] = None,
    quiet: Annotated[bool, _option("--quiet", None, "No notes on stderr.")] = False,
) -> None:
    """Decide pass or fail from a JSON report, a policy and a baseline.

    The policy is --policy FILE, else the [policy] of the run's nndiag.toml over that of the user's pyproject.toml.
    Without any, no finding may be an error. The last checkpoint of the report counts.
    """
    import nndiag
    from nndiag.cli.output import parse_targets, refuse_overwriting
    from nndiag.gating.policies import find_policy
    from nndiag.pipeline.gating import with_course
    from nndiag.records.document import load_document
    from nndiag.report.checks import FORMATS, render_checks
    from nndiag.report.files import write_text

    if update_baseline and baseline is None:
        raise UsageError("--update-baseline", "there is no baseline to update", "add --baseline FILE")
    targets = parse_targets(output or (), FORMATS)
    inputs = [path for path in (report, policy, baseline) if path is not None]
    refuse_overwriting(targets, inputs)
    document = load_document(report)
    chosen = find_policy(document, report, policy, Path.cwd())
    document = with_course(document, chosen)
    if update_baseline and baseline is not None:
        _update(document, chosen, baseline, report)
    verdict = _decide(document, chosen, baseline)
    for target in targets:
        write_text(target.path, render_checks(verdict, target.format, nndiag.__version__))
    if not quiet:
        for note in verdict.notes:
            print(f"note: {printable(note)}", file=sys.stderr)
    _print(render_checks(verdict, format_, nndiag.__version__))
    if not verdict.passed:
        raise typer.Exit(1)


def _decide(document: dict[str, object], policy: Policy, file: Path | None) -> Verdict:
    from nndiag.gating.baseline import load_baseline
    from nndiag.gating.checking import gate as decide

    known: Baseline | None = None if file is None else load_baseline(file, policy)
    return decide(document, policy, known)


def _update(document: dict[str, object], policy: Policy, file: Path, report: Path) -> None:
    """Write what is found now as the baseline, in one step."""
    import nndiag
    from nndiag.gating.baseline import baseline_text, entries_of
    from nndiag.gating.checking import limits_of
    from nndiag.gating.facts import facts_of
    from nndiag.report.files import write_text

    if file.resolve() == report.resolve():
        raise UsageError(f"--baseline {file}", "is the report itself", "name another file")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--baseline {file}", "there is no such folder", "make it first")
    facts = facts_of(document)
    entries = entries_of(facts, limits_of(facts, policy))
    write_text(file, baseline_text(entries, nndiag.__version__))


def _print(text: str) -> None:
    """Print on stdout; a failed or passed line in colour where that is a terminal that takes it."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    marks = {"✗": "31", "✓": "32"}
    lines = []
    for line in text.splitlines(keepends=True):
        code = marks.get(line.lstrip()[:1]) if colour else None
        lines.append(f"\x1b[{code}m{line.rstrip(chr(10))}\x1b[0m\n" if code else line)
    try:
        print("".join(lines), end="", flush=True)
    except BrokenPipeError:
        silence_stdout()
