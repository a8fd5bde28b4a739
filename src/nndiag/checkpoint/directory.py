"""Directories that are one checkpoint, told by what lies in them."""

from __future__ import annotations

import re
from pathlib import Path

from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.dcp import is_dcp, read_dcp
from nndiag.checkpoint.huggingface import is_huggingface, read_huggingface
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.source import unreadable
from nndiag.errors import InputError

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
    ("*_optim_states.pt", "a DeepSpeed ZeRO checkpoint, whose weights are cut up by rank", "zero"),
    ("*mp_rank_*_model_states.pt", "a DeepSpeed ZeRO checkpoint, whose weights are cut up by rank", "zero"),
    (
        "zero_to_fp32.py",
        "a DeepSpeed ZeRO checkpoint, whose weights are cut up by rank",
        "run `python zero_to_fp32.py . OUT` in it and give OUT",
    ),
    (
        "model.onnx",
        "an ONNX directory, which is not supported",
        "give the checkpoint that it was exported from",
    ),
)
_ZERO_SHARD = re.compile(r"(\w*zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")
_ZERO = "run `python zero_to_fp32.py . OUT` in the directory above and give OUT"


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
            return InputError(folder, f"is {what}", _ZERO if do == "zero" else do)
    return None


def is_zero_shard(file: Path) -> bool:
    """Return whether DeepSpeed gives this name to what one rank holds: readable alone, and no network."""
    return _ZERO_SHARD.fullmatch(file.name) is not None


def zero_refusal(folder: Path) -> InputError:
    """Return the refusal of a directory that holds shards of DeepSpeed ZeRO."""
    what = "is a DeepSpeed ZeRO checkpoint, whose weights are cut up by rank"
    return InputError(folder, what, _ZERO)
