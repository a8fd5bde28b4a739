"""A new checkpoint is read again before it takes its place: it must say what was meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nndiag.checkpoint.lazy import specs_of
from nndiag.checkpoint.opening import glance
from nndiag.errors import InputError
from nndiag.surgery.writing.changes import place_with
from nndiag.surgery.writing.job import Job


def check(job: Job, made: Path) -> None:
    """Read a checkpoint that was written, and compare it with what was to be written.

    Names, shapes and types are compared for all entries of the place, values for those that changed.

    Args:
        job: the source and the edits.
        made: the new checkpoint.

    Raises:
        InputError: it cannot be read, or differs.
    """
    changes = job.changes
    if job.source.format == "pickled-module":
        return  # reading it would run its code once more
    path = made / job.source.path.name if job.source.format == "sharded" else made
    before = specs_of(place_with(job.source, changes.place, changes.entries).tensors)
    wanted: dict[str, Tensor] = {**before, **changes.weights}
    try:
        found = place_with(glance(path, job.permission), changes.place, tuple(wanted)).tensors
    except (InputError, LookupError) as error:
        raise _spoilt(job, "cannot be read again") from error
    held: Mapping[str, Tensor] = specs_of(found)
    for name, tensor in wanted.items():
        if held[name].shape != tensor.shape or held[name].dtype != tensor.dtype:
            raise _spoilt(job, f"came out with another {name}")
    for name, tensor in changes.weights.items():
        if not _same(found[name], tensor):
            raise _spoilt(job, f"came out with another {name}")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the bit, numbers that are none included."""
    first, second = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(first, second)


def _spoilt(job: Job, why: str) -> InputError:
    return InputError(
        job.source.path, f"is of a kind that {why} when it is written anew; nothing was left",
        "load it where it was made, save it again, and heal that",
    )  # fmt: skip
