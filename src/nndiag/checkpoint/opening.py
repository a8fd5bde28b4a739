"""From a path to a ``Checkpoint``: the format is recognised, what it holds sorted, and its hash begun."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.digest import Digest
from nndiag.checkpoint.directory import read_directory
from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.progress import from_metadata, from_name, from_optimizers
from nndiag.checkpoint.pt2 import read_pt2
from nndiag.checkpoint.record import Checkpoint, Place, SavedOptimizer
from nndiag.checkpoint.safetensors_file import open_safetensors
from nndiag.checkpoint.sharded import read_sharded
from nndiag.checkpoint.siblings import read_sibling
from nndiag.checkpoint.source import NoWeightsError, Watched, opened
from nndiag.checkpoint.stable_baselines import read_stable_baselines
from nndiag.checkpoint.torch_file import read_torch
from nndiag.errors import InputError

MAX_NAME = 1000  # every finding says it again


def open_checkpoint(path: Path, permission: Permission = NOTHING) -> Checkpoint:
    """Open a checkpoint of any supported format. Nothing in it is executed without permission.

    Args:
        path: a file, or a directory that is one checkpoint.
        permission: what the user allowed.

    Returns:
        Its weights, optimiser state, and where in training it was written.

    Raises:
        InputError: the file is missing, unreadable, damaged, refused, or holds no weights.
    """
    contents = _read(path, permission, lazily=False)
    return _assemble(path, contents, Digest(contents.files), permission, lazily=False)


def glance(path: Path, permission: Permission = NOTHING) -> Checkpoint:
    """Open a checkpoint without reading all of its bytes, where the format allows; it has no hash.

    Args:
        path: a file, or a directory that is one checkpoint.
        permission: what the user allowed.

    Raises:
        NoWeightsError: it can be read, and is no checkpoint.
        InputError: as for ``open_checkpoint``.
    """
    return _assemble(path, _read(path, permission, lazily=True), None, permission, lazily=True)


def _read(path: Path, permission: Permission, lazily: bool) -> Contents:
    if os.path.isdir(path):  # false where the system does not say
        return read_directory(path, permission, lazily)
    watched = Watched(path)
    found = _read_file(path, permission, lazily)
    return found if found.files else replace(found, files={"": watched})


def _read_file(path: Path, permission: Permission, lazily: bool) -> Contents:
    with opened(path) as file:
        form = identify(path, file)
        if form == "safetensors":
            found = open_safetensors(path)
            places = (Place("", found.tensors),) if _is_weights(found.tensors.specs) else ()
            said = from_metadata(found.metadata)
            return Contents(form, places, said=said, tree=dict(found.tensors.specs))
        if form == "index":
            return read_sharded(path, permission)
        if form == "pt2":
            return read_pt2(path, file, permission)
        if form == "stable-baselines3":
            return read_stable_baselines(path, file, permission)
        return read_torch(path, file, form, permission, lazily)


def _is_weights(specs: dict[str, Tensor] | object) -> bool:
    """Return whether any tensor has a dimension: a file of losses holds no weights."""
    return isinstance(specs, dict) and any(tensor.dim() for tensor in specs.values())


def _assemble(
    path: Path, contents: Contents, digest: Digest | None, permission: Permission, lazily: bool
) -> Checkpoint:
    if not contents.places:
        raise _no_weights(path, contents.tree, contents.optimizers)
    for place in contents.places:
        if any(len(name) > MAX_NAME for name in place.tensors):
            why = f"holds a tensor with a name of more than {MAX_NAME} characters"
            raise InputError(path, why, "give it a shorter name")
    optimizers, notes = contents.optimizers, contents.notes
    if not optimizers and not os.path.isdir(path):
        optimizers, more = read_sibling(path, permission, lazily)
        notes += more
    name = path.name if os.path.isdir(path) else path.stem
    progress = contents.said.or_else(from_optimizers(optimizers)).or_else(from_name(name))
    return Checkpoint(
        path=path,
        format=contents.format,
        places=contents.places,
        optimizers=optimizers,
        step=progress.step,
        epoch=progress.epoch,
        hyper_parameters=contents.hyper_parameters,
        history=contents.history,
        notes=notes,
        digest=digest,
    )


def _no_weights(path: Path, tree: object, optimizers: tuple[SavedOptimizer, ...]) -> InputError:
    save = "save model.state_dict() with torch.save or safetensors"
    if optimizers:
        return NoWeightsError(
            path, "holds optimiser state and no weights", "give the checkpoint that it belongs to"
        )
    if isinstance(tree, Tensor):
        return NoWeightsError(path, "holds a single tensor and no named weights", save)
    if not isinstance(tree, dict):
        return NoWeightsError(path, f"holds a value of type {type(tree).__name__} and no named weights", save)
    return NoWeightsError(path, "holds no dict of named tensors", save)
