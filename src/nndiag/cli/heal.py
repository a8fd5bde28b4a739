"""``nndiag heal``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nndiag.cli import options
from nndiag.cli.endings import silence_stdout
from nndiag.errors import UsageError

if TYPE_CHECKING:
    from nndiag.records.healing import Healing

_PANEL = "What to do"


def _option(name: str, metavar: str | None, words: str) -> Any:
    return typer.Option(name, metavar=metavar, help=words, rich_help_panel=_PANEL)


def heal(
    path: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A checkpoint. It is never changed.", show_default=False)
    ],
    goal: Annotated[
        Literal["train", "deploy"] | None,
        _option("--goal", "GOAL", "train: revive nodes; deploy: take out what does nothing. Needed."),
    ] = None,
    out: Annotated[
        Path | None, _option("--out", "NEW", "The new checkpoint; NEW.heal.json says what was done.")
    ] = None,
    dry_run: Annotated[
        bool, _option("--dry-run", None, "Do everything in memory, say what it does, and write nothing.")
    ] = False,
    only: Annotated[
        list[str] | None,
        _option("--only", "CODES", "Only for these findings, such as ND201,ND1. Repeatable."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        _option("--layers", "GLOBS", "Only in these layers, such as 'encoder.*'. Repeatable."),
    ] = None,
    init: Annotated[
        str | None,
        _option(
            "--init",
            "NAME",
            "How fresh weights are drawn: default (the layer's own way), kaiming_normal, kaiming_uniform, "
            "xavier_normal, xavier_uniform or orthogonal.",
        ),
    ] = None,
    max_loss_increase: Annotated[
        float,
        _option("--max-loss-increase", "SHARE", "What may be lost where the function does change."),
    ] = 0.01,
    model: options.Model = None,
    model_arg: options.ModelArg = None,
    data: options.DataSpec = None,
    loss: options.LossSpec = None,
    limit: options.Limit = None,
    block_size: options.BlockSize = None,
    weights_key: options.WeightsKey = None,
    strip_prefix: options.StripPrefix = None,
    trust: options.Trust = False,
    allow_global: options.AllowGlobal = None,
    level: options.LevelChoice = None,
    batch_size: options.BatchSize = None,
    memory_budget: options.MemoryBudget = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    select: options.Select = None,
    ignore: options.Ignore = None,
    optimizer: options.OptimizerName = None,
    lr: options.Lr = None,
    momentum: options.Momentum = None,
    betas: options.Betas = None,
    weight_decay: options.WeightDecay = None,
    horizon: options.Horizon = None,
    format_: Annotated[
        Literal["rich", "json"],
        typer.Option("--format", metavar="FORMAT", help="On stdout: rich or json.", rich_help_panel="Report"),
    ] = "rich",
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
    verbose: options.Verbose = False,
) -> None:
    """Treat what a scan finds in a checkpoint, prove it on the probe, and write a new checkpoint.

    The same model, data and loss as for a scan are needed; an nndiag.toml beside the checkpoint may say all
    three.
    """
    from nndiag.cli.asked import codes, scan_settings
    from nndiag.cli.scan import prepare_torch
    from nndiag.cli.screen import Screen

    if goal is None:
        raise UsageError("--goal", "it is missing", "give --goal train or --goal deploy")
    scan = scan_settings(
        model=model, weights_key=weights_key, strip_prefix=strip_prefix, data=data, loss=loss,
        optimizer=optimizer, lr=lr, momentum=momentum, betas=betas, weight_decay=weight_decay, horizon=horizon,
        level=level, select=codes(select), ignore=codes(ignore), limit=limit, batch_size=batch_size,
        block_size=block_size, seed=seed, device=device, dtype=dtype, trust=trust, allow_global=allow_global,
        memory_budget=memory_budget, threads=threads, cache="off",
    )  # fmt: skip
    with Screen(quiet=quiet, no_progress=no_progress) as screen:
        screen.progress("loading torch", 0.0)
        prepare_torch(threads)
        from nndiag.model.factory import parse_arguments
        from nndiag.pipeline.healing import HealSettings
        from nndiag.pipeline.healing import heal as run_heal

        settings = HealSettings(
            goal=goal, scan=replace(scan, model_args=parse_arguments(model_arg or [])), only=codes(only),
            layers=_patterns(layers), initialiser=init, max_loss_increase=max_loss_increase, dry_run=dry_run,
        )  # fmt: skip
        found = run_heal(path, out, settings, screen)
        for note in found.notes:
            screen.note(note)
    _print(found, format_, verbose)


def _patterns(words: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for word in words or () for part in word.split(",") if part.strip())


def _print(found: Healing, format_: str, verbose: bool) -> None:
    """Print what was done on stdout; a reader who has enough is no error."""
    try:
        if format_ == "rich":
            from nndiag.cli.screen import report_console
            from nndiag.report.healing import render_healing

            render_healing(found, report_console(), verbose=verbose)
        else:
            from nndiag.report.document import render_json

            print(render_json(found), end="", flush=True)
    except BrokenPipeError:
        silence_stdout()
