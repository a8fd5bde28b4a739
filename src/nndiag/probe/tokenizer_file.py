"""The ``tokenizer.json`` of a checkpoint before its library sees it, which ends the process where memory runs out."""

from __future__ import annotations

import json
from pathlib import Path

from nndiag.errors import InputError

_LONGEST = 64
"""How many times as long its replacements may make a text, all together; usually each puts in a sign or two."""


def require_modest(path: Path) -> None:
    """Refuse a tokenizer that replaces signs by ever longer ones, one after the other.

    Raises:
        InputError: it does, or is no JSON.
    """
    growth = 1

    def look(pairs: list[tuple[str, object]]) -> None:
        nonlocal growth
        if ("type", "Replace") in pairs:
            for key, value in pairs:
                if key == "content" and isinstance(value, str):
                    growth = min(growth * max(1, len(value)), 1 << 62)

    try:
        json.loads(path.read_bytes(), object_pairs_hook=look)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, "is damaged, or no tokenizer (no JSON)", "save it again") from error
    if growth > _LONGEST:
        why = f"is refused: its replacements make a text {growth:,} times as long"
        raise InputError(path, why, "take the model's own tokenizer")
