"""What the writers of all formats are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.record import Checkpoint
from nndiag.surgery.writing.changes import Changes
from nndiag.surgery.writing.optimizers import OptimizerChange
from nndiag.surgery.writing.patient import patient
from nndiag.surgery.writing.tensor_tree import TensorTree
from nndiag.surgery.writing.torch_files import write_torch
from nndiag.surgery.writing.tree_edits import edit_optimizers, edit_weights


@dataclass(frozen=True)
class Job:
    """One checkpoint to write: where it comes from, what changes, and what becomes of its optimisers.

    ``surroundings`` are files of a directory, by their names in it, that are written with this content instead of
    being copied; ``permission`` is what the source was opened with. ``notes`` collects sentences for the user.
    """

    source: Checkpoint
    changes: Changes
    optimizers: Sequence[OptimizerChange]
    surroundings: Mapping[str, bytes] = field(default_factory=dict)
    permission: Permission = NOTHING
    notes: list[str] = field(default_factory=list)

    def optimizers_of(self, key: str) -> Sequence[OptimizerChange]:
        """Return what becomes of the optimisers in a file of this name beside the weights."""
        return [plan for plan in self.optimizers if plan.key == key]


def write_torch_file(
    job: Job, source: Path, target: Path, planned: Sequence[OptimizerChange], weights: bool = True
) -> None:
    """Write a file of torch.save with the edits of a job.

    Args:
        job: the edits.
        source: the file that is read.
        target: the file to write.
        planned: what becomes of the optimisers in this file, in its order.
        weights: whether the weights lie in it.

    Raises:
        InputError: the source is damaged, or the edits do not fit what it holds.
        OSError: the target cannot be written.
    """

    with source.open("rb") as file, patient(target) as out:
        write_torch(source, file, torch_edit(job, planned, weights), out)


def torch_edit(job: Job, planned: Sequence[OptimizerChange], weights: bool) -> Callable[[TensorTree], None]:
    """Return what edits the tree of a file: the weights where they lie in it, and the optimisers in it."""

    def edit(tree: TensorTree) -> None:
        if weights:
            edit_weights(tree, job.changes)
        if planned:
            job.notes.extend(edit_optimizers(tree, job.changes, planned))

    return edit
