"""Files of torch.save, of either form: loaded whole, or mapped where they are large."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from torch import nn

from nndiag.checkpoint.contents import Contents, contents_of_tree
from nndiag.checkpoint.identify import Format, identify
from nndiag.checkpoint.inventory import CodeError
from nndiag.checkpoint.mapped import one_at_a_time
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.plain import entries
from nndiag.checkpoint.record import Place
from nndiag.checkpoint.source import opened, size_of
from nndiag.checkpoint.torch_legacy import load_legacy
from nndiag.checkpoint.torch_load import load_trusted
from nndiag.checkpoint.torch_zip import is_mappable, load_zip
from nndiag.errors import InputError

LARGE = 256 << 20
"""Bytes from which on a file is mapped into memory instead of read; smaller ones are safe from being cut short."""


def read_torch(
    path: Path, file: BinaryIO, form: Format, permission: Permission = NOTHING, lazily: bool = False
) -> Contents:
    """Read a file that torch.save wrote.

    Args:
        path: its name.
        file: the file, at its start.
        form: ``"torch"`` or ``"torch-legacy"``.
        permission: what the user allowed. Trusted files may hold pickled modules.
        lazily: map the file whatever its size, where its form allows.

    Raises:
        InputError: it is damaged, or refused.
    """
    mapped = (
        _is_file(file) and form == "torch" and (lazily or size_of(file) >= LARGE) and is_mappable(path, file)
    )
    try:
        tree = (
            load_zip(path, file, mapped, permission)
            if form == "torch"
            else load_legacy(path, file, permission)
        )
    except CodeError:
        if not permission.trust:
            raise
        file.seek(0)
        return contents_of_tree(path, "pickled-module", _without_modules(load_trusted(path, file)))
    found = contents_of_tree(path, form, tree)
    if not mapped:
        return found
    return replace(found, places=tuple(Place(p.key, one_at_a_time(p.tensors)) for p in found.places))


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
