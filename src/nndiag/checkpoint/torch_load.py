"""The one call of ``torch.load``: always ``weights_only``, always onto the CPU, without warnings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import torch
from torch.serialization import safe_globals

from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.source import damaged, summary
from nndiag.errors import InputError


def load_checked(
    path: Path, file: IO[bytes], permission: Permission = NOTHING, values: bool = True
) -> object:
    """Load a file whose claims have been checked.

    Args:
        path: the file's name.
        file: the file, at its start.
        permission: further names that the pickle may contain.
        values: read the values of tensors; else they are on the device ``meta``.

    Raises:
        InputError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings(), safe_globals(list(permission.objects)):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu" if values else "meta", weights_only=True)
    except MemoryError as error:
        raise InputError(path, "does not fit into memory", "use a machine with more memory") from error
    # torch raises nearly every exception there is over damaged bytes.
    except Exception as error:
        raise damaged(path, summary(error)) from error


def load_trusted(path: Path, file: IO[bytes]) -> object:
    """Load a file that may run any code: for files that the user trusts, and no others.

    Raises:
        InputError: torch cannot read it; often what it names is not installed here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=False)
    # the code in the file may raise anything
    except Exception as error:
        raise InputError(
            path,
            f"cannot be unpickled ({summary(error)})",
            "run where the code of its classes can be imported",
        ) from error
