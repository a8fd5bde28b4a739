"""Directories of torch.distributed.checkpoint: read part by part, written through its own writer by one process.

How many ranks wrote the parts does not stay: whoever loads the checkpoint cuts the tensors up anew.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

from nndiag.checkpoint.dcp import Keys, path_of
from nndiag.checkpoint.dcp_metadata import METADATA, DcpMetadata, read_metadata
from nndiag.checkpoint.dcp_optimizer import is_of_optimizer, key_of, split_path
from nndiag.checkpoint.dcp_reader import GuardedFiles, read_tensor
from nndiag.checkpoint.lazy import spec
from nndiag.checkpoint.permission import Permission
from nndiag.checkpoint.plain import plain_number
from nndiag.checkpoint.source import Watched, damaged, summary
from nndiag.surgery.writing.directories import copy_surroundings
from nndiag.surgery.writing.job import Job
from nndiag.surgery.writing.moments import Value, follow
from nndiag.surgery.writing.optimizers import OptimizerChange
from nndiag.surgery.writing.patient import patient


def write_dcp(job: Job, target: Path) -> None:
    """Write a directory of torch.distributed.checkpoint with the weights and the optimisers' state edited.

    Raises:
        InputError: the source is damaged, refused or changed.
        OSError: the target cannot be written.
    """
    source = _Source(job.source.path, job.permission)
    entries = _Entries(source)
    _edit_weights(entries, job)
    planned = {plan.key: plan for plan in job.optimizers}
    for key, state in source.states().items():
        if key in planned:
            _edit_optimizer(entries, state, job, planned[key])
    target.mkdir()
    _save(entries, target)
    copy_surroundings(job, target, lambda name: name == METADATA or name in source.files.open)


class _Source:
    """A checkpoint's directory: names, and what reads the entry of a name."""

    def __init__(self, folder: Path, permission: Permission) -> None:
        self.metadata: DcpMetadata = read_metadata(Watched(folder / METADATA))
        chunks = [chunk for tensor in self.metadata.tensors.values() for chunk in tensor.chunks]
        self.files = GuardedFiles(folder, [c.file for c in (*chunks, *self.metadata.values.values())])
        self.permission = permission

    def path(self, name: str) -> Keys:
        return path_of(self.metadata, name)

    def tensor(self, name: str) -> Tensor:
        return read_tensor(self.files, self.metadata.tensors[name], self.permission)

    def content(self, name: str) -> bytes:
        """Return the bytes of what is no tensor, as they are."""
        chunk = self.metadata.values[name]
        return bytes(self.files.open[chunk.file].read(chunk.start, chunk.length))

    def value(self, name: str) -> object:
        return self.files.read(self.metadata.values[name], self.permission)

    def states(self) -> Mapping[str, Mapping[int | str, Mapping[str, str]]]:
        """Return the flat name of what every optimiser keeps, by its parameter's key and what it is."""
        found: defaultdict[str, defaultdict[int | str, dict[str, str]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for name in (*self.metadata.tensors, *self.metadata.values):
            split = split_path(self.path(name))
            part, _, rest = split[1].partition(".") if split else ("", "", "")
            owner, _, last = rest.rpartition(".")
            if split and part == "state" and owner:
                found[split[0]][key_of(owner)][last] = name
        return found


class _Entries:
    """What is to be written: the source's entries but for those that changed or went."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.tensors: dict[str, Tensor | None] = dict.fromkeys(source.metadata.tensors)
        self.values: dict[str, bytes | None] = dict.fromkeys(source.metadata.values)
        self.paths = dict(source.metadata.paths)

    def remove(self, name: str) -> None:
        self.tensors.pop(name, None)
        self.values.pop(name, None)
        self.paths.pop(name, None)

    def put(self, name: str, value: Value) -> None:
        if isinstance(value, Tensor):
            self.tensors[name] = value
        else:
            content = io.BytesIO()
            torch.save(value, content)
            self.values[name] = content.getvalue()

    def tensor(self, name: str) -> Tensor:
        new = self.tensors[name]
        return self.source.tensor(name) if new is None else new

    def content(self, name: str) -> bytes:
        new = self.values[name]
        return self.source.content(name) if new is None else new

    def specs(self) -> dict[str, Any]:
        """Return what the planner needs to know of every entry: shapes and types, and no values."""
        stored = self.source.metadata.tensors
        known = {
            name: spec(stored[name].dtype, stored[name].shape) if new is None else new.to("meta")
            for name, new in self.tensors.items()
        }
        return {**known, **dict.fromkeys(self.values)}


def _edit_weights(entries: _Entries, job: Job) -> None:
    changes, flat = job.changes, {}
    for name in entries.source.metadata.tensors:
        *outer, last = entries.source.path(name)
        if not is_of_optimizer((*outer, last)) and ".".join(map(str, outer)) == changes.place:
            flat[str(last)] = name
    for name, value in changes.weights.items():
        if name not in flat:
            like = flat[changes.added[name]]
            *outer, last = entries.source.path(like)
            flat[name] = like.removesuffix(str(last)) + name
            if like in entries.paths:
                entries.paths[flat[name]] = (*outer, name)
        entries.tensors[flat[name]] = value
    for name in changes.dropped:
        entries.remove(flat[name])


def _edit_optimizer(
    entries: _Entries, state: Mapping[int | str, Mapping[str, str]], job: Job, plan: OptimizerChange
) -> None:
    if plan.fate == "emptied":
        for kept in state.values():
            _remove_all(entries, kept)
    if plan.fate != "follows":
        return
    for name, change in job.changes.parameters.items():
        kept = state.get(plan.keys.get(name, ""), {})
        followed = follow({last: _value(entries.source, flat) for last, flat in kept.items()}, change)
        if followed.changed is None:
            _remove_all(entries, kept)
            job.notes.append(
                f"the optimiser's state of {name} cannot be cut down and was left out: it starts afresh"
            )
            continue
        for last, value in followed.changed.items():
            entries.put(kept[last], value)
        job.notes.extend(
            f"nobody knows a fresh start for the optimiser's {last}: check it"
            for last in sorted(followed.unknown)
        )
    for name in job.changes.gone:
        _remove_all(entries, state.get(plan.keys.get(name, ""), {}))


def _remove_all(entries: _Entries, kept: Mapping[str, str]) -> None:
    for name in kept.values():
        entries.remove(name)


def _value(source: _Source, name: str) -> Value:
    if name in source.metadata.tensors:
        return source.tensor(name)
    number = plain_number(source.value(name))
    return 0 if number is None else number


class _Planner(DefaultSavePlanner):
    """Plans by shapes alone, and has an entry read when it is its turn to be written."""

    def __init__(self, entries: _Entries) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._entries = entries

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Return the plan and the metadata, with the keys that every flat name was made of."""
        plans, metadata = super().create_global_plan(all_plans)
        self.metadata = replace(metadata, planner_data=self._entries.paths or None)
        return plans, self.metadata

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Return a tensor, or the bytes of what is none."""
        if index.fqn in self._entries.tensors:
            return self._entries.tensor(index.fqn).detach().contiguous()
        return io.BytesIO(self._entries.content(index.fqn))

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """Return it as it is."""
        return object


class _Files(FileSystem):
    """Files of which the system's errors come through."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Open a new file for writing."""
        with patient(Path(path)) as stream:
            yield stream


class _Writer(FileSystemWriter):
    """A writer of which the metadata does not say under what name and number it was written."""

    def storage_meta(self) -> StorageMeta | None:
        """Return nothing: the name is that of a hidden folder, and the number is random."""
        return None


def _save(entries: _Entries, target: Path) -> None:
    writer = _Writer(target, overwrite=False)
    writer.fs = _Files()
    with _quietly():
        try:
            save(entries.specs(), storage_writer=writer, planner=_Planner(entries))
        except CheckpointException as error:
            raise _cause(error, target) from error


def _cause(error: CheckpointException, target: Path) -> Exception:
    """Return what a failure was about."""
    for wrapped in error.failures.values():
        cause: object = wrapped[0] if isinstance(wrapped, tuple) else wrapped
        if isinstance(cause, Exception):
            return cause
    return damaged(target, summary(error))


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep DCP from saying that there is one process, which is meant."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
