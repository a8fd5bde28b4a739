"""Checkpoints: path → tensors, optimiser state, metadata.

A checkpoint is hostile input: nothing in it is executed, its claims are checked before anything is
allocated, and every failure is one line. One file per format; models, probes and measures must not come in
here.
"""

from __future__ import annotations

from nndiag.checkpoint.discovery import find_checkpoints
from nndiag.checkpoint.opening import open_checkpoint
from nndiag.checkpoint.permission import Permission
from nndiag.checkpoint.pt2 import is_pt2
from nndiag.checkpoint.record import Checkpoint, Place, SavedOptimizer

__all__ = [
    "Checkpoint", "Permission", "Place", "SavedOptimizer", "find_checkpoints", "is_pt2", "open_checkpoint",
]  # fmt: skip
