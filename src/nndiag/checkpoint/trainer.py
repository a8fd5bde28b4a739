"""What the Trainer of transformers leaves beside the weights in ``checkpoint-N``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nndiag.checkpoint.confine import is_inside
from nndiag.checkpoint.json_file import read_object
from nndiag.checkpoint.permission import Permission
from nndiag.checkpoint.plain import plain_value
from nndiag.checkpoint.progress import Progress
from nndiag.checkpoint.record import SavedOptimizer
from nndiag.checkpoint.source import Watched
from nndiag.checkpoint.torch_file import read_torch_file
from nndiag.errors import InputError

STATE = "trainer_state.json"
OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
"""Names of the file with the optimiser's state; the first one that is there counts."""
_SCHEDULER = "scheduler.pt"
_MAX_ROWS = 1_000_000

History = tuple[Mapping[str, float], ...]


def read_state(folder: Path) -> tuple[Progress, History]:
    """Return the step, the epochs completed and the log of a Trainer.

    The log's rows hold numbers alone: ``step``, ``epoch``, ``loss``, ``learning_rate``, ``grad_norm``, ``eval_loss``.

    Raises:
        InputError: the file is damaged.
    """
    state = read_object(folder / STATE)
    step, epoch = _number(state.get("global_step")), _number(state.get("epoch"))
    log = state.get("log_history")
    rows = log[:_MAX_ROWS] if isinstance(log, list) else []
    progress = Progress(
        None if step is None or step < 0 else int(step), None if epoch is None or epoch < 0 else int(epoch)
    )
    return progress, tuple(_numbers(row) for row in rows if isinstance(row, dict))


def read_optimizer(
    folder: Path, permission: Permission, lazily: bool = False
) -> tuple[tuple[SavedOptimizer, ...], dict[str, Watched], tuple[str, ...]]:
    """Return the state of the optimiser, the file that it was read from, and a note where it could not be.

    It is a help, so that its damage costs a note and not the checkpoint.
    """
    for name in OPTIMIZERS:
        file = folder / name
        if not file.is_file():
            continue
        if not is_inside(folder, file):
            return (), {}, (f"{name} was not used: it is a link that leaves its directory",)
        try:
            watched = Watched(file)
            found = read_torch_file(file, permission, lazily).optimizers
        except InputError as error:
            return (), {}, (f"{name} was not used: {error.why}",)
        if not found:
            return (), {}, (f"{name} was not used: it holds no optimiser state",)
        return tuple(replace(saved, key=name) for saved in found), {name: watched}, ()
    return (), {}, ()


@dataclass(frozen=True)
class Scheduled:
    """What a scheduler of learning rates last said: after how many steps, and the rate of every parameter group."""

    step: int | None
    rates: tuple[float, ...]


def read_scheduler(
    folder: Path, permission: Permission
) -> tuple[Scheduled | None, dict[str, Watched], tuple[str, ...]]:
    """Return what ``scheduler.pt`` says, the file that it was read from, and a note where it could not be."""
    file = folder / _SCHEDULER
    if not file.is_file():
        return None, {}, ()
    if not is_inside(folder, file):
        return None, {}, (f"{_SCHEDULER} was not used: it is a link that leaves its directory",)
    try:
        watched = Watched(file)
        state = plain_value(read_torch_file(file, permission).tree)
    except InputError as error:
        return None, {}, (f"{_SCHEDULER} was not used: {error.why}",)
    said = state if isinstance(state, dict) else {}
    last = said.get("_last_lr")
    rates = tuple(map(_number, last)) if isinstance(last, tuple) else ()
    known = tuple(rate for rate in rates if rate is not None and rate >= 0)
    if not rates or len(known) < len(rates):
        return None, {}, (f"{_SCHEDULER} was not used: it holds no learning rates",)
    step = _number(said.get("last_epoch"))
    return Scheduled(None if step is None or step < 0 else int(step), known), {_SCHEDULER: watched}, ()


def with_rates(
    optimizers: tuple[SavedOptimizer, ...], scheduled: Scheduled
) -> tuple[tuple[SavedOptimizer, ...], tuple[str, ...]]:
    """Return optimisers with the learning rates that a scheduler set, where they do not say them; without any
    optimiser one of which no more is known. And a note where the two disagree.
    """
    if not optimizers:
        groups = tuple({"lr": rate} for rate in scheduled.rates)
        return (SavedOptimizer(_SCHEDULER, groups, {}),), ()
    if len(optimizers) > 1 or len(optimizers[0].groups) != len(scheduled.rates):
        return optimizers, (f"{_SCHEDULER} was not used: it is of other parameter groups than the optimiser",)
    (saved,) = optimizers
    pairs = list(zip(saved.groups, scheduled.rates, strict=True))
    stated = ((_number(group.get("lr")), rate) for group, rate in pairs)
    if any(own is not None and not math.isclose(own, rate, rel_tol=1e-6) for own, rate in stated):
        return optimizers, (f"{_SCHEDULER} was not used: its learning rates are not those of {saved.key}",)
    return (replace(saved, groups=tuple({"lr": rate, **group} for group, rate in pairs)),), ()


def _numbers(row: Mapping[object, object]) -> dict[str, float]:
    pairs = ((str(key), _number(value)) for key, value in row.items())
    return {key: number for key, number in pairs if number is not None}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value) if abs(value) < 1 << 62 else math.inf
    return number if math.isfinite(number) else None
