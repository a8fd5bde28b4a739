"""Which optimiser of a checkpoint follows the edits of a model, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from nndiag.checkpoint.record import Checkpoint, SavedOptimizer
from nndiag.errors import printable
from nndiag.model.fit import Fit
from nndiag.model.optimizer_order import Key, assign
from nndiag.surgery.writing.changes import Changes

Fate = Literal["follows", "stays", "emptied"]


@dataclass(frozen=True)
class OptimizerChange:
    """What becomes of one optimiser: it follows the edits, stays as it is, or loses its state and keeps its groups.

    ``keys`` maps the model's parameters to the optimiser's own keys, where it follows.
    """

    key: str
    fate: Fate
    keys: Mapping[str, Key] = field(default_factory=dict)


def plan_optimizers(
    model: nn.Module, source: Checkpoint, fit: Fit, changes: Changes
) -> tuple[tuple[OptimizerChange, ...], tuple[str, ...]]:
    """Return what becomes of every optimiser of a checkpoint, in order, and sentences for the user.

    Nothing is guessed: state that cannot be matched with the parameters stays where every shape stayed, and is left
    out where one did not, so that the optimiser starts afresh instead of failing.

    Args:
        model: the network with the shapes of the checkpoint.
        source: the checkpoint.
        fit: where the weights of the model lie in it.
        changes: what changed.
    """
    if not changes.parameters:
        return tuple(OptimizerChange(saved.key, "stays") for saved in source.optimizers), ()
    matched = [(saved, assign(model, fit, saved)) for saved in source.optimizers]
    fitting = [saved for saved, assignment in matched if assignment.fits]
    planned, notes = [], []
    for saved, assignment in matched:
        if not assignment.fits and len(fitting) == 1:
            planned.append(OptimizerChange(saved.key, "stays"))  # that of another network
        elif len(fitting) == 1:
            planned.append(OptimizerChange(saved.key, "follows", assignment.keys))
        else:
            why = assignment.note or "several of them fit the model"
            planned.append(OptimizerChange(saved.key, _unmatched(changes)))
            notes.append(_sentence(saved, changes, why))
    return tuple(planned), tuple(notes)


def _unmatched(changes: Changes) -> Fate:
    return "emptied" if changes.shrank else "stays"


def _sentence(saved: SavedOptimizer, changes: Changes, why: str) -> str:
    reason = why.removesuffix(", its moments are left out").removesuffix("; its moments are left out")
    if changes.shrank:
        done = "its state was left out, so that it starts afresh"
    else:
        done = "its state was kept as it was, also for what was healed"
    return printable(f'optimiser "{saved.key}": {reason}; {done}')
