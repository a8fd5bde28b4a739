"""Directories of the Hugging Face kind, and what a Trainer leaves beside the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nndiag.checkpoint.huggingface import INDEX, weights_in
from nndiag.checkpoint.json_file import read_object
from nndiag.checkpoint.trainer import OPTIMIZERS
from nndiag.surgery.writing.directories import copy_surroundings
from nndiag.surgery.writing.job import Job, write_torch_file
from nndiag.surgery.writing.sharded import write_sharded, write_weights


def write_huggingface(job: Job, target: Path) -> None:
    """Write a directory: weights in the same files, the optimiser's state edited, everything else copied.

    An optimiser's state that could not be read is copied where no shape changed, and left out where one did.

    Raises:
        InputError: the source is damaged or changed.
        OSError: the target cannot be written.
    """
    folder = job.source.path
    target.mkdir()
    name = weights_in(folder)
    assert name is not None
    weights = {name}
    if name.endswith(INDEX):
        write_sharded(job, folder / name, target)
        shards = read_object(folder / name)["weight_map"]
        assert isinstance(shards, dict)
        weights |= {str(shard) for shard in shards.values()}
    else:
        write_weights(replace(job, optimizers=()), folder / name, target / name)
    for other in OPTIMIZERS:
        planned = job.optimizers_of(other)
        if planned:
            write_torch_file(job, folder / other, target / other, planned, weights=False)
        elif job.changes.shrank and (folder / other).is_file():
            job.notes.append(
                f"{other} was not read and is left out, since its shapes may no longer fit: the optimiser starts afresh"
            )
    states = OPTIMIZERS if job.changes.shrank else tuple(plan.key for plan in job.optimizers)
    copy_surroundings(job, target, lambda entry: entry in weights or entry in states)
