"""What a scan was asked to do, as the user said it; defaults are ``None`` where the run's file may say
more. ``cache`` names a folder in which finished diagnoses are kept, or is ``USER_CACHE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nndiag.errors import UsageError
from nndiag.records.level import Level
from nndiag.remedies.actions import Goal

USER_CACHE = "user"
"""The cache in the user's own folder, for runs of several checkpoints; left alone where it cannot be written."""

_LEAST = {
    "limit": 1,
    "batch_size": 1,
    "block_size": 2,
    "folds": 1,
    "every": 1,
    "last": 1,
    "seed": 0,
    "memory_budget": 1,
}
MOST_SEED = 2**62
"""Generators take 64 bits, and some count on from the seed."""
_CHOICES = {
    "curvature": ("auto", "ggn", "hessian"),
    "solver": ("lanczos", "power", "dense"),
    "granularity": ("node", "head"),
    "profile": ("default", "literal"),
    "dtype": ("float32", "float64"),
    "goal": ("train", "deploy"),
    "optimizer": ("sgd", "adam", "adamw"),
}
_DESCRIBED = (
    "curvature", "solver", "granularity", "profile", "jitter", "certificate", "verify", "select", "ignore", "goal",
    "limit", "batch_size", "block_size", "folds", "seed", "device", "dtype", "every", "last", "all_nodes",
)  # fmt: skip


@dataclass(frozen=True)
class ScanSettings:
    """Options of a scan, under the names of the command line.

    Raises (when made):
        UsageError: a number is out of range.
    """

    model: str | None = None
    model_args: Mapping[str, object] = field(default_factory=dict)
    weights_key: str | None = None
    strip_prefix: str | None = None
    data: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    horizon: float | None = None
    level: Level | None = None
    curvature: Literal["auto", "ggn", "hessian"] = "auto"
    solver: str = "lanczos"
    granularity: str = "node"
    profile: Literal["default", "literal"] = "default"
    jitter: float | None = None
    certificate: bool = False
    verify: bool = False
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    goal: Goal | None = None
    limit: int | None = None
    batch_size: int | None = None
    block_size: int | None = None
    memory_budget: int | None = None
    folds: int = 4
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    every: int | None = None
    last: int | None = None
    all_nodes: bool = False
    trust: bool = False
    allow_global: tuple[str, ...] = ()
    cache: str | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{_option(name)} {value}", "is too small", f"give at least {least}")
        if self.seed > MOST_SEED:
            raise UsageError(f"--seed {self.seed}", "is too large", f"give at most {MOST_SEED}")
        for name in ("lr", "momentum", "weight_decay", "horizon"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(
                    f"{_option(name)} {value}", "is not a usable number", "give a finite number, 0 or more"
                )
        if self.horizon == 0:
            raise UsageError(
                "--horizon 0", "nothing relaxes in no step", "give the steps that training goes on for"
            )
        decays = [
            ("--momentum", self.momentum, "0.9"),
            *(("--betas", b, "0.9,0.999") for b in self.betas or ()),
        ]
        for name, decay, example in decays:
            if decay is not None and not 0 <= decay < 1:
                raise UsageError(f"{name} {decay}", "is not from 0 up to 1", f"give e.g. {example}")
        if self.verify and self.granularity == "head":
            raise UsageError("--verify", "actions are tried on nodes", "leave out --granularity head")
        if self.jitter is not None and not 0 < self.jitter <= 1:
            why = "is not above 0 and at most 1"
            raise UsageError(
                f"--jitter {self.jitter}", why, "give e.g. 0.01: a hundredth of each input's deviation"
            )
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                words = ", ".join(known)
                raise UsageError(f"{_option(name)} {value}", "there is no such choice", f"use one of {words}")

    def described(self) -> dict[str, object]:
        """Return the settings that shape the report, for the document."""
        return {"level": self.level.label if self.level else None} | {
            name: getattr(self, name) for name in _DESCRIBED
        }


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
