"""The JSON files of a checkpoint's directory: bounded, and plain values only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nndiag.checkpoint.source import Watched, damaged, summary
from nndiag.errors import InputError

MAX_JSON = 100_000_000
_SPARE_BRACKETS = 100_000
_BYTES_A_BRACKET = 16


def read_object(path: Path) -> Mapping[str, object]:
    """Return the object that a JSON file holds.

    Raises:
        InputError: it is missing, damaged, too large, or holds something else.
    """
    file = Watched(path)
    if file.size > MAX_JSON:
        raise InputError(path, f"has more than {MAX_JSON} bytes", "take the checkpoint from its source again")
    content = file.read(0, file.size)
    if content.count(b"[") + content.count(b"{") > _SPARE_BRACKETS + file.size // _BYTES_A_BRACKET:
        # each becomes an object of sixty bytes or more
        raise InputError(
            path, "is refused: it has more brackets than such a file has", "take it from its source again"
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"no JSON: {summary(error)}") from error
    if not isinstance(found, dict):
        raise damaged(path, "no JSON object")
    return found
