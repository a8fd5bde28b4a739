"""Weights split over several files: every shard keeps its tensors, and the index counts what they hold now."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.confine import confined
from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.json_file import read_object
from nndiag.checkpoint.lazy import specs_of
from nndiag.checkpoint.source import opened
from nndiag.surgery.writing.changes import Changes
from nndiag.surgery.writing.job import Job, write_torch_file
from nndiag.surgery.writing.safetensors_file import write_safetensors


def write_sharded(job: Job, index: Path, folder: Path) -> None:
    """Write an index and its shards into a folder. Shards in which nothing changes are copied.

    Args:
        job: the edits.
        index: the index that is read.
        folder: where to write, under the same names.

    Raises:
        InputError: the source is damaged or changed.
        OSError: the target cannot be written.
    """
    described = dict(read_object(index))
    weight_map = described["weight_map"]
    assert isinstance(weight_map, dict)
    shards: defaultdict[str, list[str]] = defaultdict(list)
    for name, shard in weight_map.items():
        shards[shard].append(name)
    for shard, names in shards.items():
        target = folder / shard
        target.parent.mkdir(parents=True, exist_ok=True)
        own = replace(job, changes=job.changes.within(names), optimizers=())
        write_weights(own, confined(index, shard), target)
    if not job.changes.shrank:
        shutil.copyfile(index, folder / index.name)
        return
    metadata = described.get("metadata")
    if isinstance(metadata, dict):
        described["metadata"] = _recounted(metadata, job)
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    (folder / index.name).write_text(text, encoding="utf-8")


def write_weights(job: Job, source: Path, target: Path) -> None:
    """Write a file of weights, in either format that they come in; it is copied where nothing in it changes.

    Raises:
        InputError: the source is damaged or changed.
        OSError: the target cannot be written.
    """
    if not job.changes.weights:
        shutil.copyfile(source, target)
        return
    with opened(source) as file:
        form = identify(source, file)
    if form == "safetensors":
        write_safetensors(source, job.changes, target)
    else:
        write_torch_file(job, source, target, ())


def _recounted(metadata: dict[str, object], job: Job) -> dict[str, object]:
    """Return the counts of an index, by as much smaller as the tensors are."""
    numbers, size = _difference(job.changes, specs_of(job.source.places[0].tensors))
    new = dict(metadata)
    for key, difference in (("total_size", size), ("total_parameters", numbers)):
        held = new.get(key)
        if isinstance(held, int | float):
            new[key] = held + difference
    return new


def _difference(changes: Changes, specs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many numbers there are more, and how many bytes."""
    pairs = [(value, specs[name]) for name, value in changes.weights.items()]
    numbers = sum(new.numel() - old.numel() for new, old in pairs)
    return numbers, sum(new.nbytes - old.nbytes for new, old in pairs)
