"""The entries of a directory of torch.distributed.checkpoint: those of the source, and those that are to be written."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nndiag.checkpoint.dcp import Keys, path_of
from nndiag.checkpoint.dcp_metadata import METADATA, DcpMetadata, read_metadata
from nndiag.checkpoint.dcp_optimizer import key_of, split_path
from nndiag.checkpoint.dcp_reader import GuardedFiles, read_tensor
from nndiag.checkpoint.lazy import spec
from nndiag.checkpoint.permission import Permission
from nndiag.checkpoint.source import Watched


class Source:
    """A checkpoint's directory: names, and what reads the entry of a name."""

    def __init__(self, folder: Path, permission: Permission) -> None:
        self.metadata: DcpMetadata = read_metadata(Watched(folder / METADATA))
        chunks = [chunk for tensor in self.metadata.tensors.values() for chunk in tensor.chunks]
        self.files = GuardedFiles(folder, [c.file for c in (*chunks, *self.metadata.values.values())])
        self.permission = permission

    def path(self, name: str) -> Keys:
        """Return the keys that a flat name was made of."""
        return path_of(self.metadata, name)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, put together."""
        return read_tensor(self.files, self.metadata.tensors[name], self.permission)

    def content(self, name: str) -> bytes:
        """Return the bytes of what is no tensor, as they are."""
        chunk = self.metadata.values[name]
        return bytes(self.files.open[chunk.file].read(chunk.start, chunk.length))

    def value(self, name: str) -> object:
        """Return what is no tensor, where it may be loaded."""
        return self.files.read(self.metadata.values[name], self.permission)

    def states(self) -> Mapping[str, Mapping[int | str, Mapping[str, str]]]:
        """Return the flat names of what optimisers keep: by the optimiser, by the parameter that it belongs to, and by
        what it is.
        """
        found: defaultdict[str, defaultdict[int | str, dict[str, str]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for name in (*self.metadata.tensors, *self.metadata.values):
            split = split_path(self.path(name))
            head, _, rest = split[1].partition(".") if split else ("", "", "")
            owner, _, last = rest.rpartition(".")
            if split and head == "state" and owner:
                found[split[0]][key_of(owner)][last] = name
        return found


class Entries:
    """What is to be written: the source's entries but for those that changed or went."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tensors: dict[str, Tensor | None] = dict.fromkeys(source.metadata.tensors)
        self.values: dict[str, bytes | None] = dict.fromkeys(source.metadata.values)
        self.paths = dict(source.metadata.paths)

    def remove(self, name: str) -> None:
        """Leave an entry out."""
        self.tensors.pop(name, None)
        self.values.pop(name, None)
        self.paths.pop(name, None)

    def put(self, name: str, value: object) -> None:
        """Give an entry another value; anything but a tensor is written by torch.save."""
        if isinstance(value, Tensor):
            self.tensors[name] = value
        else:
            content = io.BytesIO()
            torch.save(value, content)
            self.values[name] = content.getvalue()

    def tensor(self, name: str) -> Tensor:
        """Return the tensor that is to be written."""
        new = self.tensors[name]
        return self.source.tensor(name) if new is None else new

    def content(self, name: str) -> bytes:
        """Return the bytes that are to be written."""
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
