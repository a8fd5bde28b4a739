"""Read ``nndiag.toml`` beside a run and ``[tool.nndiag]`` of the user's project."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nndiag.config.problems import config_error
from nndiag.config.record import Origin, RunConfig
from nndiag.config.tables import Tables
from nndiag.config.toml_file import RUN_FILE, read_toml, user_table
from nndiag.errors import UsageError


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
    return _validated(read_toml(file), Origin(folder, str(file), "run"), "")


def load_user_config(start: Path) -> RunConfig:
    """Return ``[tool.nndiag]`` of the nearest ``pyproject.toml`` that has it, in ``start`` or a parent of it.

    Raises:
        UsageError: a file on the way cannot be read, is not TOML, or the table holds an unknown key or a
            wrong type.
    """
    found = user_table(start)
    if found is None:
        return RunConfig(start.absolute())
    table, file = found
    return _validated(table, Origin(file.parent, str(file), "user"), "tool.nndiag")


def _validated(content: Any, origin: Origin, table_prefix: Literal["", "tool.nndiag"]) -> RunConfig:
    if not isinstance(content, dict):
        raise UsageError(origin.source, f"{table_prefix} is not a table", f"write [{table_prefix}]")
    try:
        tables = Tables.model_validate(content)
    except ValidationError as error:
        raise config_error(error, origin.source, table_prefix) from error
    return RunConfig.of(tables, origin)
