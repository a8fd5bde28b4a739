"""``nndiag compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nndiag.cli import options
from nndiag.cli.endings import silence_stdout
from nndiag.errors import UsageError

if TYPE_CHECKING:
    from nndiag.records.comparison import Comparison

FORMATS = ("rich", "json", "markdown")


def _option(name: str, metavar: str | None, words: str) -> Any:
    return typer.Option(name, metavar=metavar, help=words, rich_help_panel="Options")


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="A run directory; checkpoints or JSON reports in order; or two runs.",
            show_default=False,
        ),
    ],
    match: Annotated[
        bool, _option("--match", None, "Two networks: find which node is which, by best assignment.")
    ] = False,
    model: options.Model = None,
    model_arg: options.ModelArg = None,
    data: options.DataSpec = None,
    loss: options.LossSpec = None,
    level: options.LevelChoice = None,
    every: options.Every = None,
    last: options.Last = None,
    cache: options.CacheFolder = "user",
    trust: options.Trust = False,
    fail_on: options.FailOn = "never",
    format_: Annotated[
        Literal["rich", "json", "markdown"] | None,
        _option("--format", "FORMAT", "On stdout: rich (default), json or markdown."),
    ] = None,
    output: options.Output = None,
    all_nodes: options.AllNodes = False,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
    verbose: options.Verbose = False,
) -> None:
    """Say how nodes move along a run: who died when, who recovered, what shrinks, grows or oscillates.

    JSON reports of `nndiag scan` are read at once; checkpoints are scanned first, as deep as the run's
    nndiag.toml or the options allow.
    """
    from nndiag.cli.output import parse_targets, refuse_overwriting
    from nndiag.cli.screen import Screen
    from nndiag.pipeline.comparing import CompareSettings, is_report
    from nndiag.pipeline.comparing import compare as run_compare
    from nndiag.pipeline.settings import ScanSettings
    from nndiag.records.level import Level
    from nndiag.report.files import write_text

    targets = parse_targets(output or (), FORMATS)
    refuse_overwriting(targets, paths)
    settings = ScanSettings(
        model=model, data=data, loss=loss, level=None if level is None else Level.parse(level), every=every,
        last=last, trust=trust, cache=None if cache == "off" else cache,
    )  # fmt: skip
    with Screen(quiet=quiet, no_progress=no_progress) as screen:
        if not all(is_report(path) for path in paths):
            from dataclasses import replace

            from nndiag.cli.scan import prepare_torch

            screen.progress("loading torch", 0.0)
            prepare_torch(None)
            from nndiag.model.factory import parse_arguments

            settings = replace(settings, model_args=parse_arguments(model_arg or []))
        elif model or data or loss or level:
            raise UsageError("compare", "reports are not measured again", "give these options to nndiag scan")
        asked = CompareSettings(all_nodes=all_nodes, match=match, scan=settings)
        found = run_compare(paths, asked, screen)
        for target in targets:
            write_text(target.path, _rendered(found, target.format))
    _print(found, format_ or "rich", verbose)
    if _fails(found, fail_on):
        raise typer.Exit(1)


def _rendered(found: Comparison, format_: str) -> str:
    if format_ == "json":
        from nndiag.report.document import render_json

        return render_json(found)
    if format_ == "markdown":
        from nndiag.report.compare_markdown import render_comparison_markdown

        return render_comparison_markdown(found)
    from nndiag.report.compare_terminal import render_comparison_text

    return render_comparison_text(found)


def _print(found: Comparison, format_: str, verbose: bool) -> None:
    try:
        if format_ == "rich":
            from nndiag.cli.screen import report_console
            from nndiag.report.compare_terminal import render_comparison

            render_comparison(found, report_console(), verbose=verbose)
        else:
            print(_rendered(found, format_), end="", flush=True)
    except BrokenPipeError:
        silence_stdout()


def _fails(found: Comparison, fail_on: str) -> bool:
    from nndiag.gating.severity import AT_LEAST

    parts = (found.model.findings, *(node.findings for node in found.nodes))
    return any(finding.severity in AT_LEAST[fail_on] for part in parts for finding in part)
