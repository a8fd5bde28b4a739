"""The optimiser's state in a file of its own, beside the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nndiag.checkpoint.optimizers import sibling_of
from nndiag.checkpoint.permission import Permission
from nndiag.checkpoint.record import SavedOptimizer
from nndiag.checkpoint.torch_file import read_torch_file
from nndiag.errors import InputError


def read_sibling(
    path: Path, permission: Permission, lazily: bool
) -> tuple[tuple[SavedOptimizer, ...], tuple[str, ...]]:
    """Return what lies beside a checkpoint file, or a note why it was not used.

    It is a help, so that its damage costs a note and not the checkpoint.
    """
    sibling = sibling_of(path)
    if not sibling.is_file():
        return (), ()
    if sibling.resolve().parent != sibling.parent.resolve():
        return (), (f"{sibling.name} was not used: it is a link that leaves its directory",)
    try:
        optimizers = read_torch_file(sibling, replace(permission, trust=False), lazily).optimizers
    except InputError as error:
        return (), (f"{sibling.name} was not used: {error.why}",)
    if not optimizers:
        return (), (f"{sibling.name} was not used: it holds no optimiser state",)
    return tuple(replace(saved, key=sibling.name) for saved in optimizers), ()
