"""The report as JSON: one document, or one line a checkpoint. Equal reports give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from math import isfinite
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from nndiag.records.comparison import Comparison
from nndiag.records.healing import Healing
from nndiag.records.report import VERDICTS, Report

_OPEN_DEPTH = 4
"""Down to here every entry has lines of its own; what lies deeper, such as a node, stands on one line."""

_OPEN_DEPTH_OF_RUNS = 2


def render_json(report: Report | Comparison | Healing) -> str:
    """Return the whole report as one JSON document; a number that is not finite is ``null``."""
    depth = _OPEN_DEPTH if isinstance(report, Report) else _OPEN_DEPTH_OF_RUNS
    return "".join(_written(_plain(report), 0, depth)) + "\n"


def render_jsonl(report: Report) -> str:
    """Return one JSON object a line for each checkpoint; each has the versions, so that it stands alone."""
    head = {"schema_version": report.schema_version, "nndiag_version": report.nndiag_version}
    return "".join(_compact(head | _plain(diagnosis)) + "\n" for diagnosis in report.checkpoints)


def _plain(value: object) -> Any:
    """Return ``value`` as JSON types: fields in declared order, free keys sorted, no infinities."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, dict):
        return {str(key): _plain(value[key]) for key in sorted(value, key=_key_order)}
    if isinstance(value, list | tuple):  # mostly numbers, which a call each would make three times slower
        return [
            item if item is None or (type(item) is float and isfinite(item)) else _plain(item)
            for item in value
        ]
    return _plain(to_jsonable_python(value))


@cache
def _fields(record: type[BaseModel]) -> tuple[str, ...]:
    return tuple(record.model_fields)


def _key_order(key: object) -> tuple[int, str]:
    """Order verdicts as the catalogue does, everything else by the alphabet."""
    return (VERDICTS.index(key) if key in VERDICTS else len(VERDICTS)), str(key)


def _written(value: Any, depth: int, most: int) -> Iterator[str]:
    if depth >= most or not value or not isinstance(value, dict | list):
        yield _compact(value)
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    inner = "\n" + "  " * (depth + 1)
    yield opening
    for place, item in enumerate(value):
        yield ("," if place else "") + inner
        if isinstance(value, dict):
            yield _compact(item) + ": "
            item = value[item]
        yield from _written(item, depth + 1, most)
    yield "\n" + "  " * depth + closing


def _compact(value: Any) -> str:
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(", ", ": "))
    return text.replace("##", "#\\u0023")  # ##[command] is obeyed by some build machines wherever it stands
