"""Directories of torch.distributed.checkpoint: read part by part, written through its own writer by one process.

How many ranks wrote the parts does not stay: whoever loads the checkpoint cuts the tensors up anew.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

from nndiag.checkpoint.dcp_metadata import METADATA
from nndiag.checkpoint.dcp_reader import quietly
from nndiag.checkpoint.source import damaged, summary
from nndiag.surgery.writing.dcp_edits import edit_optimizers, edit_weights
from nndiag.surgery.writing.dcp_entries import Entries, Source
from nndiag.surgery.writing.directories import copy_surroundings
from nndiag.surgery.writing.job import Job
from nndiag.surgery.writing.patient import patient


def write_dcp(job: Job, target: Path) -> None:
    """Write a directory of torch.distributed.checkpoint with the weights and the optimisers' state edited.

    Raises:
        InputError: the source is damaged, refused or changed.
        OSError: the target cannot be written.
    """
    source = Source(job.source.path, job.permission)
    entries = Entries(source)
    edit_weights(entries, job)
    edit_optimizers(entries, job)
    target.mkdir()
    _save(entries, target)
    copy_surroundings(job, target, lambda name: name == METADATA or name in source.files.open)


class _Planner(DefaultSavePlanner):
    """Plans by shapes alone, and has an entry read when it is its turn to be written."""

    def __init__(self, entries: Entries) -> None:
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


def _save(entries: Entries, target: Path) -> None:
    writer = _Writer(target, overwrite=False)
    writer.fs = _Files()
    with quietly():
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
