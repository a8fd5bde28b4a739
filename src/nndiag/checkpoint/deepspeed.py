"""The refusal of what DeepSpeed ZeRO writes: a file for each rank, none of which is a network."""

from __future__ import annotations

import re
from pathlib import Path

from nndiag.errors import InputError

WHAT = "is a DeepSpeed ZeRO checkpoint, whose weights are cut up by rank"
OUT = "run `python zero_to_fp32.py . OUT` in the directory above and give OUT"
MODULE = "deepspeed."
"""What the names of its classes begin with, such as that of the loss scaler, which its pickles name."""
_SHARD = re.compile(r"(\w*zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")


def is_zero_shard(file: Path) -> bool:
    """Return whether DeepSpeed gives this name to what one rank holds: readable alone, and no network."""
    return _SHARD.fullmatch(file.name) is not None


def zero_refusal(path: Path) -> InputError:
    """Return the refusal of a shard of DeepSpeed ZeRO, or of a directory that holds some."""
    return InputError(path, WHAT, OUT)
