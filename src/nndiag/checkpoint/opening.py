"""From a path to a ``Checkpoint``: the format is recognised, the file loaded, and what it holds sorted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.identify import Format, identify
from nndiag.checkpoint.optimizers import find_optimizers, sibling_of
from nndiag.checkpoint.places import find_places
from nndiag.checkpoint.plain import named_entries, plain_value
from nndiag.checkpoint.progress import Progress, from_metadata, from_name, from_optimizers, from_tree
from nndiag.checkpoint.record import Checkpoint, SavedOptimizer
from nndiag.checkpoint.safetensors_file import load_safetensors
from nndiag.checkpoint.source import NoWeightsError, opened
from nndiag.checkpoint.torch_legacy import load_legacy
from nndiag.checkpoint.torch_zip import load_zip
from nndiag.errors import InputError


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint file of any supported format. Nothing in it is executed.

    Args:
        path: a safetensors file, or a file that torch.save wrote, with zip or without.

    Returns:
        Its weights, optimiser state, and where in training it was written.

    Raises:
        InputError: the file is missing, unreadable, damaged, refused, or holds no weights.
    """
    with opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        return replace(_assemble(path, file, lazily=False), sha256=digest)


def glance(path: Path) -> Checkpoint:
    """Open a checkpoint without reading all of its bytes, where the format allows; ``sha256`` is empty.

    Raises:
        NoWeightsError: it can be read, and is no checkpoint.
        InputError: as for ``open_checkpoint``.
    """
    with opened(path) as file:
        return _assemble(path, file, lazily=True)


@dataclass(frozen=True)
class _Contents:
    format: Format
    tree: object
    metadata: Mapping[str, str] = field(default_factory=dict)


def _load(path: Path, file: BufferedReader, lazily: bool) -> _Contents:
    form = identify(path, file)
    if form == "safetensors":
        return _Contents(form, *load_safetensors(path))
    if form == "torch":
        return _Contents(form, load_zip(path, file, lazily))
    return _Contents(form, load_legacy(path, file))


def _assemble(path: Path, file: BufferedReader, lazily: bool) -> Checkpoint:
    contents = _load(path, file, lazily)
    tree = contents.tree
    places = find_places(path, tree)
    optimizers = find_optimizers(path, tree)
    if not places:
        raise _no_weights(path, tree, optimizers)
    notes: tuple[str, ...] = ()
    if not optimizers:
        optimizers, notes = _from_sibling(sibling_of(path), lazily)
    said = from_metadata(contents.metadata).or_else(from_tree(tree, is_weights=places[0].key == ""))
    progress: Progress = said.or_else(from_optimizers(optimizers)).or_else(from_name(path.stem))
    hyper_parameters = plain_value(dict(named_entries(tree)).get("hyper_parameters"))
    return Checkpoint(
        path=path,
        format=contents.format,
        sha256="",
        places=places,
        optimizers=optimizers,
        step=progress.step,
        epoch=progress.epoch,
        hyper_parameters=hyper_parameters if isinstance(hyper_parameters, dict) else {},
        notes=notes,
    )


def _from_sibling(sibling: Path, lazily: bool) -> tuple[tuple[SavedOptimizer, ...], tuple[str, ...]]:
    """Read the optimiser's own file; it is a help, so that its damage costs a note and not the checkpoint."""
    if not sibling.is_file():
        return (), ()
    if sibling.resolve().parent != sibling.parent.resolve():
        return (), (f"{sibling.name} was not used: it is a link that leaves its directory",)
    try:
        with opened(sibling) as file:
            optimizers = find_optimizers(sibling, _load(sibling, file, lazily).tree)
    except InputError as error:
        return (), (f"{sibling.name} was not used: {error.why}",)
    if not optimizers:
        return (), (f"{sibling.name} was not used: it holds no optimiser state",)
    return tuple(replace(saved, key=sibling.name) for saved in optimizers), ()


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
