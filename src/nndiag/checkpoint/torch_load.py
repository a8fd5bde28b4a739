"""The one call of ``torch.load``: always ``weights_only``, always onto the CPU, without warnings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import torch

from nndiag.checkpoint.source import damaged, summary
from nndiag.errors import InputError


def load_checked(path: Path, file: BinaryIO, lazily: bool = False) -> object:
    """Load a file whose claims have been checked.

    Args:
        path: the file's name.
        file: the file, at its start.
        lazily: map the file into memory instead of reading it, where its format allows.

    Raises:
        InputError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if lazily:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise InputError(path, "does not fit into memory", "use a machine with more memory") from error
    # torch raises nearly every exception there is over damaged bytes.
    except Exception as error:
        raise damaged(path, summary(error)) from error
