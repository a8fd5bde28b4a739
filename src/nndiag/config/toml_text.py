"""Values as TOML writes them: names of files are someone else's text, and what is written has to be read again."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nndiag.errors import printable

_WIDTH = 160


def toml_value(value: object) -> str:
    """Return a value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_table(name: str, values: Mapping[str, object]) -> str:
    """Return a table, a key a line; nothing where it is empty."""
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items()]
    return "\n".join([f"[{name}]", *lines]) + "\n" if lines else ""


def toml_comment(text: str) -> str:
    """Return a line of comment."""
    return f"# {printable(text)[:_WIDTH]}"
