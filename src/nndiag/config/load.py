"""Read ``nndiag.toml`` beside a run and ``[tool.nndiag]`` of the user's project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nndiag.config.problems import config_error
from nndiag.config.record import Origin, RunConfig
from nndiag.config.tables import Tables
from nndiag.errors import UsageError

RUN_FILE = "nndiag.toml"
USER_FILE = "pyproject.toml"
LARGEST = 2**20
"""Bytes of a configuration: the file of a run is someone else's, and a layer list is never this long."""
_DEEP_KEY = re.compile(rb"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){20}""")
"""A dotted key takes the parser memory by the square of its parts."""


def load_run_config(path: Path) -> RunConfig:
    """Return what the ``nndiag.toml`` of a run says; an empty configuration where there is none.

    Args:
        path: a run directory, or a checkpoint file (then the ``nndiag.toml`` beside it counts).

    Raises:
        UsageError: the file cannot be read, is not TOML, or holds an unknown key or a wrong type.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / RUN_FILE
    if not file.is_file():
        return RunConfig(folder)
    return _validated(_read(file), Origin(folder, str(file), "run"), "")


def load_user_config(start: Path) -> RunConfig:
    """Return ``[tool.nndiag]`` of the nearest ``pyproject.toml`` that has it, in ``start`` or a parent of it.

    Raises:
        UsageError: a file on the way cannot be read, is not TOML, or the table holds an unknown key or a
            wrong type.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        file = folder / USER_FILE
        if not file.is_file():
            continue
        tool = _read(file).get("tool")
        if isinstance(tool, dict) and "nndiag" in tool:
            return _validated(tool["nndiag"], Origin(folder, str(file), "user"), "tool.nndiag")
    return RunConfig(start)


def _read(file: Path) -> dict[str, Any]:
    """Return the parsed file; every way in which it can be wrong is one line."""
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


def _validated(content: Any, origin: Origin, table_prefix: Literal["", "tool.nndiag"]) -> RunConfig:
    if not isinstance(content, dict):
        raise UsageError(origin.source, f"{table_prefix} is not a table", f"write [{table_prefix}]")
    try:
        tables = Tables.model_validate(content)
    except ValidationError as error:
        raise config_error(error, origin.source, table_prefix) from error
    return RunConfig.of(tables, origin)
