"""Directories that are one checkpoint, told by what lies in them."""

from __future__ import annotations

from pathlib import Path

from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.dcp import is_dcp, read_dcp
from nndiag.checkpoint.deepspeed import OUT, WHAT
from nndiag.checkpoint.huggingface import is_huggingface, read_huggingface
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.source import unreadable
from nndiag.errors import InputError

_ZERO = WHAT.removeprefix("is ")
_FOREIGN = (
    ("saved_model.pb", "a TensorFlow SavedModel, which is not supported", "save the weights as safetensors"),
    (
        "_CHECKPOINT_METADATA",
        "an orbax (JAX) checkpoint, which is not supported",
        "save the weights as safetensors",
    ),
    (
        "manifest.ocdbt",
        "an orbax (JAX) checkpoint, which is not supported",
        "save the weights as safetensors",
    ),
    ("*_optim_states.pt", _ZERO, OUT),
    ("*mp_rank_*_model_states.pt", _ZERO, OUT),
    (
        "zero_to_fp32.py",
        _ZERO,
        "run `python zero_to_fp32.py . OUT` in it and give OUT",
    ),
    (
        "model.onnx",
        "an ONNX directory, which is not supported",
        "give the checkpoint that it was exported from",
    ),
)


def is_checkpoint_directory(folder: Path) -> bool:
    """Return whether a directory is one checkpoint, of a kind that can be read."""
    return is_dcp(folder) or is_huggingface(folder)


def read_directory(folder: Path, permission: Permission = NOTHING, lazily: bool = False) -> Contents:
    """Open a directory that is one checkpoint.

    Raises:
        InputError: it is none, of a kind that cannot be read, damaged or refused.
    """
    try:
        if is_dcp(folder):
            return read_dcp(folder, permission)
        if is_huggingface(folder):
            return read_huggingface(folder, permission, lazily)
        refusal = foreign(folder)
    except OSError as error:
        raise unreadable(folder, error) from error
    raise refusal or InputError(folder, "is a directory and no checkpoint", "name a checkpoint in it")


def foreign(folder: Path) -> InputError | None:
    """Return the refusal of a directory that another framework wrote; ``None`` for any other."""
    for pattern, what, do in _FOREIGN:
        if next(folder.glob(pattern), None) is not None:
            return InputError(folder, f"is {what}", do)
    return None
