"""``nndiag scan``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nndiag.errors import InputError, UsageError

if TYPE_CHECKING:
    from nndiag.pipeline import Outcome
    from nndiag.records.level import Level
    from nndiag.records.report import Report

Many = list[str]
INPUT, UPDATE, DEPTH, REPORT = "Inputs", "Optimiser", "What to measure", "Report"

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Checkpoint files or run directories.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="SPEC", help="pkg.mod:callable or path/file.py:callable that returns the model."
    ),
]
ModelArg = Annotated[
    Many | None,
    typer.Option("--model-arg", metavar="K=V", help="Keyword of the factory, V as JSON. Repeatable."),
]
WeightsKey = Annotated[
    str | None, typer.Option("--weights-key", metavar="KEY", help="Where the weights lie inside the file.")
]
StripPrefix = Annotated[
    str | None, typer.Option("--strip-prefix", metavar="P", help="Prefix to take off the names in the file.")
]
DataSpec = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help=".safetensors, .npz or .pt with x and optionally y, or file.py:callable.",
    ),
]
LossSpec = Annotated[
    str | None,
    typer.Option(
        "--loss", metavar="SPEC", help="cross_entropy, mse, nll, bce_with_logits, or file.py:callable."
    ),
]
OptimizerName = Annotated[
    str | None, typer.Option("--optimizer", help="sgd, adam or adamw, over what the checkpoint says.")
]
Lr = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
Momentum = Annotated[float | None, typer.Option("--momentum", help="Momentum of SGD.")]
Betas = Annotated[str | None, typer.Option("--betas", metavar="B1,B2", help="Betas of Adam.")]
WeightDecay = Annotated[float | None, typer.Option("--weight-decay", help="Weight decay.")]
Horizon = Annotated[
    float | None, typer.Option("--horizon", help="Steps within which a direction must relax.")
]
LevelName = Annotated[
    str | None,
    typer.Option(
        "--level", help="weights, activations, gradients or curvature; default the deepest possible."
    ),
]
Curvature = Annotated[str, typer.Option("--curvature", help="auto or ggn.")]
Solver = Annotated[str, typer.Option("--solver", help="lanczos, power or dense.")]
Select = Annotated[
    Many | None,
    typer.Option("--select", metavar="CODES", help="Only these findings; prefixes and commas work."),
]
Ignore = Annotated[Many | None, typer.Option("--ignore", metavar="CODES", help="Not these findings.")]
GoalName = Annotated[
    str | None,
    typer.Option(
        "--goal", help="train or deploy: what advice is for. Default: train where training seems to go on."
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Use the first N samples of the probe.")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Samples per pass.")]
Folds = Annotated[
    int, typer.Option("--folds", metavar="K", help="Parts of the probe that a verdict must hold in.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random number.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 or float64.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of torch.")]
Every = Annotated[
    int | None,
    typer.Option("--every", metavar="K", help="Every K-th checkpoint of a run, the last one always."),
]
Last = Annotated[int | None, typer.Option("--last", metavar="K", help="The last K checkpoints of a run.")]
Format = Annotated[str | None, typer.Option("--format", help="rich, json, jsonl or markdown, to stdout.")]
Output = Annotated[
    Many | None, typer.Option("--output", metavar="FORMAT=FILE", help="The same into a file. Repeatable.")
]
AllNodes = Annotated[bool, typer.Option("--all-nodes", help="List healthy nodes too.")]
FailOn = Annotated[
    Literal["error", "warning", "never"],
    typer.Option("--fail-on", help="Exit 1 where a finding is at least this severe."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Allow code that the scanned directory names.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No notes and no progress on stderr.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show everything; on an internal error its traceback.")
]


def scan(
    paths: Paths,
    model: Model = None,
    model_arg: ModelArg = None,
    weights_key: WeightsKey = None,
    strip_prefix: StripPrefix = None,
    data: DataSpec = None,
    loss: LossSpec = None,
    optimizer: OptimizerName = None,
    lr: Lr = None,
    momentum: Momentum = None,
    betas: Betas = None,
    weight_decay: WeightDecay = None,
    horizon: Horizon = None,
    level: LevelName = None,
    curvature: Curvature = "auto",
    solver: Solver = "lanczos",
    select: Select = None,
    ignore: Ignore = None,
    goal: GoalName = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    folds: Folds = 4,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    every: Every = None,
    last: Last = None,
    format_: Format = None,
    output: Output = None,
    all_nodes: AllNodes = False,
    fail_on: FailOn = "never",
    trust: Trust = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
) -> None:
    """Measure and judge one checkpoint, or every checkpoint of a run directory."""
    from nndiag.cli.screen import Screen
    from nndiag.report import FORMATS

    files = _outputs(output or [], format_, tuple(FORMATS))
    with Screen(quiet=quiet, no_progress=no_progress) as screen:
        screen.progress(0, 1, "loading torch", 0, 1)
        from nndiag.model.factory import parse_arguments
        from nndiag.pipeline import ScanSettings
        from nndiag.pipeline import scan as run_scan
        from nndiag.records.level import Level

        _set_threads(threads)
        settings = ScanSettings(
            model=model, model_args=parse_arguments(model_arg or []), weights_key=weights_key,
            strip_prefix=strip_prefix, data=data, loss=loss, optimizer=optimizer, lr=lr, momentum=momentum,
            betas=_betas(betas), weight_decay=weight_decay, horizon=horizon,
            level=_level(level, [known.label for known in Level]),
            curvature=curvature, solver=solver, select=_codes(select), ignore=_codes(ignore),
            goal=goal, limit=limit, batch_size=batch_size, folds=folds, seed=seed, device=device,  # type: ignore[arg-type]
            dtype=dtype, every=every, last=last, all_nodes=all_nodes, trust=trust,
        )  # fmt: skip
        outcome = run_scan(paths, settings, screen)
    _write(outcome.report, files)
    _print(outcome, format_, verbose)
    if _fails(outcome.report, fail_on):
        raise typer.Exit(1)


def _outputs(pairs: list[str], format_: str | None, known: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Check the formats before any work, and return what to write where."""
    words = ", ".join(known)
    if format_ is not None and format_ not in known:
        raise UsageError(f"--format {format_}", "there is no such format", f"use one of {words}")
    found = []
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not file or name not in known:
            raise UsageError(
                f"--output {pair}", "is not FORMAT=FILE of a known format", f"use one of {words}"
            )
        if not Path(file).absolute().parent.is_dir():
            raise UsageError(f"--output {pair}", "its folder does not exist", "make the folder first")
        found.append((name, Path(file)))
    return found


def _level(word: str | None, known: list[str]) -> Level | None:
    from nndiag.records.level import Level

    if word is None:
        return None
    if word not in known:
        raise UsageError(f"--level {word}", "there is no such level", f"use one of {', '.join(known)}")
    return Level.parse(word)


def _betas(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--betas {text}", "is not two numbers", "write --betas 0.9,0.999") from None
    if not (0 <= first < 1 and 0 <= second < 1):
        raise UsageError(f"--betas {text}", "both must be at least 0 and below 1", "write --betas 0.9,0.999")
    return first, second


def _codes(words: list[str] | None) -> tuple[str, ...]:
    return tuple(code.strip().upper() for word in words or [] for code in word.split(",") if code.strip())


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"--threads {threads}", "is too small", "give at least 1")
    import torch

    torch.set_num_threads(threads)


def _write(report: Report, files: list[tuple[str, Path]]) -> None:
    """Write the files whole or not at all: to a temporary file beside each, then renamed."""
    from nndiag.report import FORMATS

    for name, path in files:
        try:
            handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    stream.write(FORMATS[name](report))
                Path(temporary).chmod(0o666 & ~_umask())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InputError(path, f"cannot be written ({error.strerror})", "choose another file") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _print(outcome: Outcome, format_: str | None, verbose: bool) -> None:
    from nndiag.cli.screen import report_console
    from nndiag.report import FORMATS, render_terminal

    if format_ in (None, "rich"):
        render_terminal(outcome.report, report_console(), verbose=verbose, hints=outcome.hints)
    else:
        assert format_ is not None
        print(FORMATS[format_](outcome.report), end="")


def _fails(report: Report, fail_on: str) -> bool:
    bad = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[fail_on]
    for found in report.checkpoints:
        places = [
            found.model.findings,
            *(layer.findings for layer in found.layers),
            *(n.findings for n in found.nodes),
        ]
        if any(finding.severity in bad for findings in places for finding in findings):
            return True
    return False
