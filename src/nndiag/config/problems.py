"""One line for the first thing that is wrong in a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nndiag.config.suggest import suggest
from nndiag.config.tables import Tables
from nndiag.errors import UsageError

EXPECTED: Mapping[str, str] = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "a string",
    "string_too_short": "a string that is not empty",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "missing": "a list with more elements",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "too_long": "a list of {max_length}",
}


def config_error(error: ValidationError, source: str, table_prefix: str) -> UsageError:
    """Return the first problem of ``error`` as one line; an unknown key comes before a wrong type.

    Args:
        error: what pydantic found.
        source: the file, for the message.
        table_prefix: ``""`` or ``"tool.nndiag"``, what stands before the tables' names in the file.
    """
    first = min(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    table, *rest = (str(part) for part in first["loc"])
    if first["type"] == "missing":
        rest.pop()
    key = ".".join(rest)
    header = f"{source} [{'.'.join(part for part in (table_prefix, table) if part)}]" if rest else source
    if first["type"] == "extra_forbidden":
        known = _keys_of(table) if rest else list(Tables.model_fields)
        kind = "key" if rest else "table"
        return UsageError(header, f'unknown {kind} "{key or table}"', suggest(key or table, known))
    if first["type"] == "value_error":
        return UsageError(f"{source} [{table}]", str(first["ctx"]["error"]), "keep the one that is meant")
    return UsageError(
        header,
        f"{key or table} is {_shown(first['input'])}, expected {_expected(first)}",
        "correct its value",
    )


def _keys_of(table: str) -> list[str]:
    model = Tables.model_fields[table].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return list(model.model_fields)


def _expected(detail: ErrorDetails) -> str:
    pattern = EXPECTED.get(detail["type"])
    return pattern.format(**detail.get("ctx", {})) if pattern else detail["msg"]


def _shown(value: Any) -> str:
    """Return the value about as TOML writes it, cut to a length that fits a line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
