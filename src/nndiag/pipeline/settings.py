"""What a scan was asked to do, as the user said it; defaults are ``None`` where the run's file may say
more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nndiag.errors import UsageError
from nndiag.records.level import Level
from nndiag.remedies.actions import Goal


class Listener(Protocol):
    """Told of what happens during a scan."""

    def note(self, sentence: str) -> None:
        """Something was chosen, assumed or left out."""

    def progress(self, checkpoint: int, checkpoints: int, what: str, done: int, total: int) -> None:
        """Work went on: on which checkpoint of how many, at what, how far."""


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
    curvature: str = "auto"
    solver: str = "lanczos"
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    goal: Goal | None = None
    limit: int | None = None
    batch_size: int | None = None
    folds: int = 4
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    every: int | None = None
    last: int | None = None
    all_nodes: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("limit", 1),
            ("batch_size", 1),
            ("folds", 1),
            ("every", 1),
            ("last", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value}", "is too small", f"give at least {least}"
                )
        for name in ("lr", "momentum", "weight_decay", "horizon"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{option} {value}", "is not a usable number", "give a finite number, 0 or more"
                )
        _one_of("--curvature", self.curvature, ("auto", "ggn"))
        _one_of("--solver", self.solver, ("lanczos", "power", "dense"))
        _one_of("--dtype", self.dtype, ("float32", "float64"))
        _one_of("--goal", self.goal, (None, "train", "deploy"))
        _one_of("--optimizer", self.optimizer, (None, "sgd", "adam", "adamw"))

    def described(self) -> dict[str, object]:
        """Return the settings that shape the report, for the document."""
        names = (
            "curvature", "solver", "select", "ignore", "goal", "limit", "batch_size", "folds", "seed",
            "device",
            "dtype", "every", "last", "all_nodes",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {"level": self.level.label if self.level else None, **values}


def _one_of(option: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        words = ", ".join(str(k) for k in known if k is not None)
        raise UsageError(f"{option} {value}", "there is no such choice", f"use one of {words}")
