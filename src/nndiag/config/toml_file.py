"""The configuration files and how they are read, without pydantic: the gate has no time for it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from nndiag.errors import UsageError

RUN_FILE = "nndiag.toml"
USER_FILE = "pyproject.toml"
LARGEST = 2**20
"""Bytes of a configuration: the file of a run is someone else's, and a layer list is never this long."""
_DEEP_KEY = re.compile(rb"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){20}""")
"""A dotted key takes the parser memory by the square of its parts."""


def read_toml(file: Path) -> dict[str, Any]:
    """Return the parsed file; every way in which it can be wrong is one line.

    Raises:
        UsageError: it cannot be read, is too large, or is not TOML.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(
            file, f"cannot be read ({error.strerror})", "make it readable or remove it"
        ) from error
    if len(content) > LARGEST:
        raise UsageError(file, f"is larger than {LARGEST // 2**10} KiB", "keep only the configuration in it")
    if _DEEP_KEY.search(content):
        raise UsageError(file, "has a key of more than 20 parts", "write tables")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(file, f"is not UTF-8 at byte {error.start}", "save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(file, f"is not valid TOML: {error}", "correct it there") from error


def user_table(start: Path) -> tuple[object, Path] | None:
    """Return ``[tool.nndiag]`` of the nearest ``pyproject.toml`` that has it, and that file, in ``start`` or a parent.

    Raises:
        UsageError: a file on the way cannot be read or is not TOML.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        file = folder / USER_FILE
        if not file.is_file():
            continue
        tool = read_toml(file).get("tool")
        if isinstance(tool, dict) and "nndiag" in tool:
            return tool["nndiag"], file
    return None
