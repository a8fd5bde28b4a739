"""From edits of a model to a new checkpoint, in the format and with the surroundings of the one that it came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nndiag.checkpoint.optimizers import sibling_of
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.record import Checkpoint
from nndiag.errors import printable
from nndiag.model.fit import Fit
from nndiag.surgery.edits import Edits
from nndiag.surgery.writing.changes import changes_of
from nndiag.surgery.writing.copies import copies
from nndiag.surgery.writing.dcp import write_dcp
from nndiag.surgery.writing.exported import write_exported
from nndiag.surgery.writing.huggingface import write_huggingface
from nndiag.surgery.writing.job import Job, write_torch_file
from nndiag.surgery.writing.optimizers import plan_optimizers
from nndiag.surgery.writing.reading_back import check
from nndiag.surgery.writing.safetensors_file import write_safetensors
from nndiag.surgery.writing.sharded import write_sharded
from nndiag.surgery.writing.stable_baselines import write_stable_baselines
from nndiag.surgery.writing.staging import check_destination, staged

Writer = Callable[[Job, Path], None]
Beside = Callable[[tuple[str, ...]], Mapping[str, bytes]]


@dataclass(frozen=True)
class Written:
    """A new checkpoint: its ``path``; ``beside`` are files that belong to it and lie next to it, such as an optimiser's
    state. ``notes`` are sentences for the user: what was left out, or kept although it no longer fits.
    """

    path: Path
    beside: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def _nothing_beside(notes: tuple[str, ...]) -> Mapping[str, bytes]:
    return {}


def write(
    source: Checkpoint,
    fit: Fit,
    edits: Edits,
    destination: Path,
    *,
    model: nn.Module,
    surroundings: Mapping[str, bytes] | None = None,
    permission: Permission = NOTHING,
    beside: Beside = _nothing_beside,
) -> Written:
    """Write a checkpoint like ``source`` with the edits of a model made in it, whole or not at all.

    Everything else stays: metadata, order and types of the tensors, other entries of a training checkpoint, other
    files of a directory. The optimiser's state follows: what is kept for entries that went goes, entries in
    ``edits.reset`` start afresh (``moments``). The target is never one that exists.

    Args:
        source: the checkpoint, as ``open_checkpoint`` returned it. Its files are read again.
        fit: where the model's weights lie in it, as ``model.fit.fit`` found them.
        edits: what changed, by the model's names.
        destination: a path at which nothing is: a file for a checkpoint that is a file, else a directory. An index
            of shards, given as a file, becomes a directory with the index and the shards.
        model: the network with the names and shapes of ``source``, before anything was removed from it; its values
            do not matter.
        surroundings: for directories, files by their names in it that are written with this content, such as an
            edited ``config.json``.
        permission: what ``source`` was opened with.
        beside: returns files that belong next to the destination, by their names there, such as a report; it is
            given the notes. They appear with the checkpoint, or do not.

    Raises:
        UsageError: the target exists, is the source, or has no folder to be in.
        InputError: it cannot be written (permission, full disk), the source changed since it was opened, or its
            format cannot hold the edits. Nothing is left behind, then.
        ModelError: something changed that the checkpoint has no place for.
    """
    check_destination(source.path, destination)
    changes = changes_of(model, source, fit, edits)
    planned, notes = plan_optimizers(model, source, fit, changes)
    job = Job(
        source, changes, planned, surroundings or {}, permission, [*notes, *copies(source, fit, changes)]
    )
    with staged(destination) as folder:
        _WRITERS[source.format](job, folder / destination.name)
        check(job, folder / destination.name)
        _ = source.sha256  # raises where a file changed since it was opened
        said = tuple(dict.fromkeys(map(printable, job.notes)))
        for name, content in beside(said).items():
            with (folder / name).open("xb") as stream:
                stream.write(content)
        made = sorted(set(os.listdir(folder)) - {destination.name})
    return Written(destination, tuple(destination.parent / name for name in made), said)


def _safetensors(job: Job, target: Path) -> None:
    write_safetensors(job.source.path, job.changes, target)
    _sibling(job, target)


def _torch(job: Job, target: Path) -> None:
    beside = job.optimizers_of(sibling_of(job.source.path).name)
    write_torch_file(job, job.source.path, target, () if beside else job.optimizers)
    _sibling(job, target)


def _sibling(job: Job, target: Path) -> None:
    """Write the optimiser's state in the file beside the weights, where that is where it lies."""
    beside = sibling_of(job.source.path)
    planned = job.optimizers_of(beside.name)
    if planned:
        write_torch_file(job, beside, sibling_of(target), planned, weights=False)


def _shards(job: Job, target: Path) -> None:
    """Write an index that was given as a file, with its shards, into a directory."""
    target.mkdir()
    write_sharded(job, job.source.path, target)


_WRITERS: Mapping[str, Writer] = {
    "safetensors": _safetensors,
    "torch": _torch,
    "torch-legacy": _torch,
    "pickled-module": _torch,
    "dcp": write_dcp,
    "sharded": _shards,
    "huggingface": write_huggingface,
    "huggingface-trainer": write_huggingface,
    "stable-baselines3": write_stable_baselines,
    "pt2": write_exported,
}
