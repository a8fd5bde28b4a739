"""Files of torch.save, of either form: loaded whole, or tensor by tensor where they are large."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from torch import nn

from nndiag.checkpoint.contents import Contents, contents_of_tree
from nndiag.checkpoint.identify import Format, identify
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.plain import entries
from nndiag.checkpoint.record import Place
from nndiag.checkpoint.refusing import CodeError
from nndiag.checkpoint.source import Watched, opened, size_of
from nndiag.checkpoint.stored import StoredState, late, load_stored
from nndiag.checkpoint.torch_legacy import load_legacy
from nndiag.checkpoint.torch_load import load_trusted
from nndiag.checkpoint.torch_zip import is_native, load_zip
from nndiag.errors import InputError

LARGE = 256 << 20
"""Bytes from which on the tensors of a file are read one by one."""


def read_torch(
    path: Path, file: BinaryIO, form: Format, permission: Permission = NOTHING, lazily: bool = False
) -> Contents:
    """Read a file that torch.save wrote.

    Args:
        path: its name.
        file: the file, at its start.
        form: ``"torch"`` or ``"torch-legacy"``.
        permission: what the user allowed. Trusted files may hold pickled modules.
        lazily: leave the tensors in the file whatever its size, where its form allows.

    Raises:
        InputError: it is damaged, or refused.
    """
    wanted = form == "torch" and (lazily or size_of(file) >= LARGE)
    watched = None
    try:
        if wanted and _is_file(file) and is_native(path, file):
            tree, watched = load_stored(path, file, permission)
        elif form == "torch":
            tree = load_zip(path, file, permission)
        else:
            tree = load_legacy(path, file, permission)
    except CodeError:
        if not permission.trust:
            raise
        file.seek(0)
        return contents_of_tree(path, "pickled-module", _without_modules(load_trusted(path, file)))
    found = contents_of_tree(path, form, tree)
    return found if watched is None else _read_late(found, watched)


def _read_late(found: Contents, file: Watched) -> Contents:
    """Return contents of which the tensors are read from their file when they are asked for."""
    optimizers = (
        replace(saved, state={key: StoredState(file, values) for key, values in saved.state.items()})
        for saved in found.optimizers
    )
    places = (Place(place.key, late(file, place.tensors)) for place in found.places)
    return replace(found, places=tuple(places), optimizers=tuple(optimizers))


def read_torch_file(path: Path, permission: Permission = NOTHING, lazily: bool = False) -> Contents:
    """Open and read a file that torch.save should have written, such as a Trainer's ``optimizer.pt``.

    Raises:
        InputError: it is missing, damaged, refused, or in another format.
    """
    with opened(path) as file:
        form = identify(path, file)
        if form not in ("torch", "torch-legacy"):
            raise InputError(
                path, f"is a {form} file where one of torch.save is meant", "take it from its source again"
            )
        return read_torch(path, file, form, permission, lazily)


def _is_file(file: BinaryIO) -> bool:
    """Return whether this is a file of the system, and not a part of one in memory."""
    return not isinstance(file, io.BytesIO)


def _without_modules(tree: object, depth: int = 3) -> object:
    """Return a loaded value with every module replaced by its state dict."""
    if isinstance(tree, nn.Module):
        return dict(tree.state_dict())
    if isinstance(tree, dict) and depth:
        return {key: _without_modules(value, depth - 1) for key, value in entries(tree)}
    return tree
