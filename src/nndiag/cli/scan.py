"""``nndiag scan``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from nndiag.cli import options
from nndiag.cli.endings import COULD_NOT, as_line, print_error, silence_stdout
from nndiag.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nndiag.pipeline import Outcome
    from nndiag.records.forecast import Forecast
    from nndiag.records.gate import Verdict
    from nndiag.records.report import Report

FailWord = Literal["error", "warning", "never"]


def scan(
    paths: options.Paths,
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
    level: options.LevelChoice = None,
    curvature: options.Curvature = "auto",
    solver: options.Solver = "lanczos",
    certificate: options.Certificate = False,
    granularity: options.Granularity = "node",
    folds: options.Folds = 4,
    jitter: options.Jitter = None,
    batch_size: options.BatchSize = None,
    memory_budget: options.MemoryBudget = None,
    plan: options.ShowPlan = False,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    profile: options.Profile = "default",
    select: options.Select = None,
    ignore: options.Ignore = None,
    goal: options.GoalName = None,
    verify: options.Verify = False,
    fail_on: options.FailOn = "never",
    optimizer: options.OptimizerName = None,
    lr: options.Lr = None,
    momentum: options.Momentum = None,
    betas: options.Betas = None,
    weight_decay: options.WeightDecay = None,
    horizon: options.Horizon = None,
    format_: options.Format = None,
    output: options.Output = None,
    all_nodes: options.AllNodes = False,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure and judge a checkpoint, or every checkpoint of a run directory.

    A file alone is judged by its weights. Add --model and --data to see what the nodes do, and a loss to see
    what training can still do with them. An nndiag.toml beside the checkpoints may say all three.
    """
    from nndiag.cli.asked import codes, scan_settings
    from nndiag.cli.output import parse_targets, refuse_overwriting, write_reports
    from nndiag.cli.screen import Screen

    formats = _formats(fail_on)
    if format_ is not None and format_ not in formats:
        raise UsageError(f"--format {format_}", "there is no such format", f"use one of {', '.join(formats)}")
    files = formats | {"parquet": _parquet}
    targets = parse_targets(output or (), files)
    settings = scan_settings(
        model=model, weights_key=weights_key, strip_prefix=strip_prefix, data=data, loss=loss,
        optimizer=optimizer, lr=lr, momentum=momentum, betas=betas, weight_decay=weight_decay,
        horizon=horizon, level=level, curvature=curvature, solver=solver, granularity=granularity,
        profile=profile, jitter=jitter, certificate=certificate, verify=verify, select=codes(select),
        ignore=codes(ignore),
        goal=goal, limit=limit, batch_size=batch_size, block_size=block_size, folds=folds, seed=seed,
        device=device, dtype=dtype, threads=threads, every=every, last=last, all_nodes=all_nodes, trust=trust,
        allow_global=allow_global, cache=cache, memory_budget=memory_budget,
    )  # fmt: skip
    if plan and (output or format_ not in (None, "rich", "json")):
        raise UsageError(
            "--plan", "it is printed for people or as JSON", "give --format rich or json, and no --output"
        )
    with Screen(quiet=quiet, no_progress=no_progress) as screen:
        screen.progress("loading torch", 0.0)
        prepare_torch(threads)
        from nndiag.model.factory import parse_arguments
        from nndiag.pipeline.scanning import plan_scan
        from nndiag.pipeline.scanning import scan as run_scan

        settings = replace(settings, model_args=parse_arguments(model_arg or []))
        forecast, refused = plan_scan(paths, settings, screen) if plan else (None, ())
        if forecast is None:
            outcome = run_scan(paths, settings, screen)
            refuse_overwriting(targets, [*outcome.files, *([Path(data)] if data else [])])
            write_reports(outcome.report, targets, files)
            refused = outcome.refused
    if forecast is not None:
        _print_plan(forecast, format_ or "rich")
    else:
        _print(outcome, format_ or "rich", formats, verbose)
    for error in refused:
        print_error(*as_line(error))
    if refused:
        raise typer.Exit(COULD_NOT)
    if forecast is None and fail_on != "never" and not _by_severity(outcome.report, fail_on).passed:
        raise typer.Exit(1)


def prepare_torch(threads: int | None) -> None:
    """Import torch, and set how it uses the processor.

    Its threads spin while they wait for work, unless told otherwise before they start: beside any other load
    on the machine that makes a scan of small layers ten times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _formats(fail_on: FailWord) -> dict[str, Callable[[Report], str]]:
    """Return all formats by their words; those for builds fail what ``--fail-on`` says, errors where it says never."""
    import nndiag
    from nndiag.report import CHECK_FORMATS, FORMATS
    from nndiag.report.checks import render_checks

    def checks(name: str) -> Callable[[Report], str]:
        failing: FailWord = "error" if fail_on == "never" else fail_on
        return lambda report: render_checks(_by_severity(report, failing), name, nndiag.__version__)

    return FORMATS | {name: checks(name) for name in CHECK_FORMATS}


def _parquet(report: Report) -> bytes:
    from nndiag.records.document import NOISE
    from nndiag.records.table import parquet_bytes, report_columns

    noisy = any(one.probe is not None and one.probe.random for one in report.checkpoints)
    return parquet_bytes(report_columns(report), NOISE if noisy else "")


def _by_severity(report: Report, fail_on: FailWord) -> Verdict:
    from nndiag.gating.severity import by_severity

    return by_severity(report.model_dump(), fail_on)


def _print(
    outcome: Outcome, format_: str, formats: Mapping[str, Callable[[Report], str]], verbose: bool
) -> None:
    """Print the report on stdout; a reader who has enough, such as ``head``, is no error."""
    from nndiag.cli.screen import report_console
    from nndiag.report import render_terminal

    try:
        if format_ == "rich":
            render_terminal(outcome.report, report_console(), verbose=verbose, hints=outcome.hints)
        else:
            print(formats[format_](outcome.report), end="", flush=True)
    except BrokenPipeError:
        silence_stdout()


def _print_plan(forecast: Forecast, format_: str) -> None:
    """Print a plan on stdout."""
    from nndiag.cli.screen import report_console
    from nndiag.report.forecast import forecast_json, render_forecast

    try:
        if format_ == "rich":
            render_forecast(forecast, report_console())
        else:
            print(forecast_json(forecast), end="", flush=True)
    except BrokenPipeError:
        silence_stdout()
