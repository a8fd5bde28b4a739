"""A storage reader for ``torch.distributed.checkpoint`` that trusts nothing it reads.

The stock ``FileSystemReader`` unpickles ``.metadata`` and follows whatever paths it names. This one takes checked
metadata, keeps to the checkpoint's directory, and checks every part before torch loads it. DCP itself does what it is
good at: planning, and putting the parts of all ranks together into whole tensors in one process.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from nndiag.checkpoint.confine import confined
from nndiag.checkpoint.dcp_metadata import METADATA, Chunk, StoredTensor
from nndiag.checkpoint.permission import Permission
from nndiag.checkpoint.plain import plain_tensor
from nndiag.checkpoint.source import Watched, damaged, summary
from nndiag.checkpoint.torch_zip import load_zip
from nndiag.errors import InputError


class GuardedFiles:
    """The data files of a checkpoint's directory, opened as they are needed."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.open = {name: Watched(confined(folder / METADATA, name)) for name in sorted(set(names))}

    def read(self, chunk: Chunk, permission: Permission) -> object:
        """Return the value that torch.save wrote into some bytes of a file.

        Raises:
            InputError: it is damaged, or names or claims what is not allowed.
        """
        file = self.open[chunk.file]
        return load_zip(file.path, io.BytesIO(file.read(chunk.start, chunk.length)), permission=permission)


class GuardedReader(StorageReader):
    """Reads the parts of one tensor.

    Args:
        files: the data files.
        tensor: the tensor, under the name ``"tensor"``.
        permission: what the user allowed.
    """

    def __init__(self, files: GuardedFiles, tensor: StoredTensor, permission: Permission) -> None:
        self.files, self.permission = files, permission
        self.stored = {chunk.offsets: chunk for chunk in tensor.chunks}
        parts = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in tensor.chunks]
        described = TensorStorageMetadata(TensorProperties(tensor.dtype), torch.Size(tensor.shape), parts)
        self.metadata = Metadata({"tensor": described})

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata that was checked."""
        return self.metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planner's tensor from the parts that the plan asks for."""
        for item in plan.items:
            index: MetadataIndex = item.storage_index
            chunk = self.stored[tuple(index.offset or ())]
            part = self.files.read(chunk, self.permission)
            if not isinstance(part, Tensor) or tuple(part.shape) != chunk.sizes:
                raise damaged(
                    self.files.open[chunk.file].path, "a part of another shape than its metadata says"
                )
            values = plain_tensor(self.files.open[chunk.file].path, "a part", part)
            for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                values = values.narrow(axis, start, length)
            planner.resolve_tensor(item).copy_(values)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a reader is of one checkpoint."""

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: everything is known."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return that no other checkpoint can be read."""
        return False


def read_tensor(files: GuardedFiles, tensor: StoredTensor, permission: Permission) -> Tensor:
    """Return a tensor put together from its parts, in this process alone.

    Raises:
        InputError: a part is damaged or refused.
    """
    # zeros, since parts that overlap would leave others as the memory was
    found = {"tensor": torch.zeros(tensor.shape, dtype=tensor.dtype)}
    with quietly():
        try:
            state_dict_loader.load(
                found, storage_reader=GuardedReader(files, tensor, permission), no_dist=True
            )
        except CheckpointException as error:
            raise _cause(error, files) from error
    return found["tensor"]


def _cause(error: CheckpointException, files: GuardedFiles) -> InputError:
    """Return what a rank's failure was about."""
    causes: Mapping[int, Any] = error.failures
    for wrapped in causes.values():
        cause = wrapped[0] if isinstance(wrapped, tuple) else wrapped
        if isinstance(cause, InputError):
            return cause
    path = next(iter(files.open.values())).path
    return damaged(path, summary(error))


@contextmanager
def quietly() -> Iterator[None]:
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
