"""From edits of a model to a new checkpoint of the same format: one file per format, whole or not at all.

What is written was decided elsewhere; nothing here knows a treatment.
"""

from __future__ import annotations

from nndiag.surgery.writing.staging import check_destination
from nndiag.surgery.writing.writing import Written, write

__all__ = ["Written", "check_destination", "write"]
