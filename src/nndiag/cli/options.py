"""The options of ``scan``: their names, types, places in the help, and words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Many = list[str]
LevelName = Literal["weights", "activations", "gradients", "curvature"]

_INPUTS, _UPDATE, _DEPTH, _FINDINGS, _REPORT = (
    "Inputs", "Optimiser (over what the checkpoint says)", "What to measure", "What to find", "Report",
)  # fmt: skip


def _option(panel: str, name: str, metavar: str | None, words: str) -> Any:
    return typer.Option(name, metavar=metavar, help=words, rich_help_panel=panel)


Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Checkpoint files, or run directories.", show_default=False),
]

Model = Annotated[
    str | None,
    _option(
        _INPUTS,
        "--model",
        "SPEC",
        "The network: pkg.mod:callable, path/file.py:callable, timm:NAME, or hf (its config.json).",
    ),
]
ModelArg = Annotated[
    Many | None,
    _option(_INPUTS, "--model-arg", "K=V", "A keyword for the callable, V as JSON. Repeatable."),
]
WeightsKey = Annotated[
    str | None, _option(_INPUTS, "--weights-key", "KEY", "Where the weights lie in the file, if in doubt.")
]
StripPrefix = Annotated[
    str | None, _option(_INPUTS, "--strip-prefix", "P", "Prefix of their names, if in doubt.")
]
DataSpec = Annotated[
    str | None,
    _option(
        _INPUTS, "--data", "SPEC",
        "The probe: arrays x and y (.safetensors, .npz, .pt), a table (.parquet, .jsonl, a dataset folder), "
        "text (.txt), random:3x32x32, or file.py:callable.",
    ),
]  # fmt: skip
LossSpec = Annotated[
    str | None,
    _option(
        _INPUTS, "--loss", "SPEC",
        "cross_entropy, mse, nll, bce_with_logits, causal_lm, masked_lm, or file.py:callable.",
    ),
]  # fmt: skip
Limit = Annotated[int | None, _option(_INPUTS, "--limit", "N", "Only the first N samples of the probe.")]
BlockSize = Annotated[
    int | None, _option(_INPUTS, "--block-size", "N", "Tokens a sample of a text; 128 by default.")
]
Every = Annotated[
    int | None,
    _option(_INPUTS, "--every", "K", "Every K-th checkpoint of a run, counted from the last."),
]
Last = Annotated[int | None, _option(_INPUTS, "--last", "K", "Only the last K checkpoints.")]
CacheFolder = Annotated[
    str,
    _option(
        _INPUTS, "--cache", "DIR",
        "Where finished checkpoints of a run are kept; off for nowhere; the user's own cache by default.",
    ),
]  # fmt: skip
Trust = Annotated[
    bool,
    _option(
        _INPUTS, "--trust", None, "Run code that the checkpoint or its directory brings. Off by default."
    ),
]
AllowGlobal = Annotated[
    Many | None,
    _option(_INPUTS, "--allow-global", "NAME", "A class of plain data that a pickle may name. Repeatable."),
]

OptimizerName = Annotated[
    Literal["sgd", "adam", "adamw"] | None, _option(_UPDATE, "--optimizer", "NAME", "sgd, adam or adamw.")
]
Lr = Annotated[float | None, _option(_UPDATE, "--lr", "X", "Learning rate.")]
Momentum = Annotated[float | None, _option(_UPDATE, "--momentum", "X", "Momentum of SGD.")]
Betas = Annotated[str | None, _option(_UPDATE, "--betas", "B1,B2", "Betas of Adam.")]
WeightDecay = Annotated[float | None, _option(_UPDATE, "--weight-decay", "X", "Weight decay.")]
Horizon = Annotated[
    float | None,
    _option(_UPDATE, "--horizon", "STEPS", "Steps in which a direction must relax to count as trainable."),
]

LevelChoice = Annotated[
    LevelName | None,
    _option(
        _DEPTH, "--level", "LEVEL",
        "weights, activations, gradients or curvature; the deepest possible by default.",
    ),
]  # fmt: skip
Curvature = Annotated[
    Literal["auto", "ggn", "hessian"],
    _option(_DEPTH, "--curvature", "KIND", "auto, ggn, or hessian: exact blocks of every node, or an error."),
]
Solver = Annotated[
    Literal["lanczos", "power", "dense"], _option(_DEPTH, "--solver", "NAME", "lanczos, power or dense.")
]
Certificate = Annotated[
    bool,
    _option(
        _DEPTH, "--certificate", None,
        "Certify the point: full Hessian, gradient against noise, minimum or saddle, basin.",
    ),
]  # fmt: skip
Verify = Annotated[
    bool,
    _option(
        _FINDINGS, "--verify", None,
        "Try every recommended action on the probe, alone and all together.",
    ),
]  # fmt: skip
Granularity = Annotated[
    Literal["node", "head"],
    _option(_DEPTH, "--granularity", "UNIT", "node, or head: take the rows of an attention head together."),
]
Jitter = Annotated[
    float | None,
    _option(_DEPTH, "--jitter", "S", "Noise on the inputs, in their deviations: which masks are at an edge."),
]
BatchSize = Annotated[
    int | None,
    _option(_DEPTH, "--batch-size", "N", "Samples a pass; 256 to 1024 by default."),
]
MemoryBudget = Annotated[
    str | None,
    _option(
        _DEPTH,
        "--memory-budget",
        "SIZE",
        "Memory beside model and probe, e.g. 4GiB; half of what is free by default.",
    ),
]
ShowPlan = Annotated[
    bool,
    _option(_DEPTH, "--plan", None, "Print passes, memory and estimated time, and do nothing else."),
]
Folds = Annotated[int, _option(_DEPTH, "--folds", "K", "Parts of the probe that a verdict must hold in.")]
Seed = Annotated[int, _option(_DEPTH, "--seed", "N", "Seed of every random number.")]
Device = Annotated[str, _option(_DEPTH, "--device", "NAME", "cpu, cuda, cuda:1, …")]
Dtype = Annotated[Literal["float32", "float64"], _option(_DEPTH, "--dtype", "TYPE", "float32 or float64.")]
Threads = Annotated[int | None, _option(_DEPTH, "--threads", "N", "Threads to compute with.")]

Profile = Annotated[
    Literal["default", "literal"],
    _option(
        _FINDINGS, "--profile", "NAME",
        "default, or literal: a node is degenerate where any eigenvalue of its block is flat.",
    ),
]  # fmt: skip
Select = Annotated[
    Many | None,
    _option(_FINDINGS, "--select", "CODES", "Only these findings, such as ND201,ND4. Repeatable."),
]
Ignore = Annotated[Many | None, _option(_FINDINGS, "--ignore", "CODES", "Not these findings. Repeatable.")]
GoalName = Annotated[
    Literal["train", "deploy"] | None,
    _option(_FINDINGS, "--goal", "GOAL", "What advice is for: train (goes on) or deploy (finished)."),
]
FailOn = Annotated[
    Literal["error", "warning", "never"],
    _option(
        _FINDINGS, "--fail-on", "SEVERITY",
        "Exit 1 where a finding is at least this severe: error, warning or never.",
    ),
]  # fmt: skip

Format = Annotated[
    str | None,
    _option(
        _REPORT, "--format", "FORMAT",
        "On stdout: rich (default), json, jsonl, markdown, junit, sarif or github.",
    ),
]  # fmt: skip
Output = Annotated[
    Many | None,
    _option(_REPORT, "--output", "FORMAT=FILE", "The same into a file, or parquet=FILE. Repeatable."),
]
AllNodes = Annotated[bool, _option(_REPORT, "--all-nodes", None, "List healthy nodes too.")]
Quiet = Annotated[bool, _option(_REPORT, "--quiet", None, "No notes and no progress on stderr.")]
NoProgress = Annotated[bool, _option(_REPORT, "--no-progress", None, "No progress bar.")]
Verbose = Annotated[
    bool, _option(_REPORT, "--verbose", None, "Show everything; after an error its traceback.")
]
