"""``nndiag compare``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nndiag.cli import options
from nndiag.cli.endings import silence_stdout
from nndiag.errors import UsageError

if TYPE_CHECKING:
    from nndiag.pipeline.settings import ScanSettings
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
    limit: options.Limit = None,
    block_size: options.BlockSize = None,
    weights_key: options.WeightsKey = None,
    strip_prefix: options.StripPrefix = None,
    every: options.Every = None,
    last: options.Last = None,
    cache: options.CacheFolder = "user",
    trust: options.Trust = False,
    allow_global: options.AllowGlobal = None,
    optimizer: options.OptimizerName = None,
    lr: options.Lr = None,
    momentum: options.Momentum = None,
    betas: options.Betas = None,
    weight_decay: options.WeightDecay = None,
    horizon: options.Horizon = None,
    level: options.LevelChoice = None,
    curvature: options.Curvature = "auto",
    solver: options.Solver = "lanczos",
    granularity: options.Granularity = "node",
    folds: options.Folds = 4,
    jitter: options.Jitter = None,
    batch_size: options.BatchSize = None,
    memory_budget: options.MemoryBudget = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    profile: options.Profile = "default",
    select: options.Select = None,
    ignore: options.Ignore = None,
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
    from nndiag.cli.asked import codes, scan_settings
    from nndiag.cli.output import parse_targets, refuse_overwriting
    from nndiag.cli.screen import Screen
    from nndiag.pipeline.comparing import CompareSettings, is_report
    from nndiag.pipeline.comparing import compare as run_compare
    from nndiag.report.files import write_text

    targets = parse_targets(output or (), FORMATS)
    refuse_overwriting(targets, paths)
    settings = scan_settings(
        model=model, weights_key=weights_key, strip_prefix=strip_prefix, data=data, loss=loss,
        optimizer=optimizer, lr=lr, momentum=momentum, betas=betas, weight_decay=weight_decay,
        horizon=horizon, level=level, curvature=curvature, solver=solver, granularity=granularity,
        profile=profile, jitter=jitter, limit=limit, batch_size=batch_size, block_size=block_size, folds=folds,
        seed=seed, device=device, dtype=dtype, threads=threads, every=every, last=last, trust=trust,
        allow_global=allow_global, cache=cache, memory_budget=memory_budget,
    )  # fmt: skip
    with Screen(quiet=quiet, no_progress=no_progress) as screen:
        if all(is_report(path) for path in paths):
            _refuse_measuring(settings, model_arg)
        else:
            from nndiag.cli.scan import prepare_torch

            screen.progress("loading torch", 0.0)
            prepare_torch(threads)
            from nndiag.model.factory import parse_arguments

            settings = replace(settings, model_args=parse_arguments(model_arg or []))
        asked = CompareSettings(
            all_nodes=all_nodes, match=match, scan=settings, select=codes(select), ignore=codes(ignore)
        )
        found = run_compare(paths, asked, screen)
        for target in targets:
            write_text(target.path, _rendered(found, target.format))
    _print(found, format_ or "rich", verbose)
    if _fails(found, fail_on):
        raise typer.Exit(1)


def _refuse_measuring(settings: ScanSettings, model_arg: list[str] | None) -> None:
    """Make sure that nothing is asked of reports that only a scan can do.

    Raises:
        UsageError: an option says how to measure.
    """
    from nndiag.pipeline.settings import ScanSettings

    chosen = {"every", "last", "trust", "cache"}  # these choose checkpoints, or do no harm
    plain = ScanSettings()
    given = [one.name for one in fields(plain) if getattr(settings, one.name) != getattr(plain, one.name)]
    measuring = [*(name for name in given if name not in chosen), *(["model_arg"] if model_arg else [])]
    if measuring:
        option = f"--{measuring[0].replace('_', '-')}"
        raise UsageError(option, "reports are not measured again", "give this option to nndiag scan")


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
