"""The JSON Schema of the document, from the records; ``python -m nndiag.report.schema PATH`` writes it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from nndiag.records.comparison import Comparison
from nndiag.records.report import SCHEMA_VERSION, Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_text() -> str:
    """Return the schema of what ``scan`` and ``compare`` print as JSON, the same bytes every time."""
    head = {"$schema": DIALECT, "$comment": f"schema_version {SCHEMA_VERSION}", "title": "nndiag report"}
    records = [(Report, "serialization"), (Comparison, "serialization")]
    _, body = models_json_schema(records, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    either = {"anyOf": [{"$ref": f"#/$defs/{record.__name__}"} for record, _ in records]}
    return (
        json.dumps(head | either | _unwrapped({"$defs": body["$defs"]}), indent=2, ensure_ascii=True) + "\n"
    )


def _unwrapped(part: Any) -> Any:
    """Return a part of the schema with every description on one line, however the docstring was wrapped."""
    if isinstance(part, dict):
        flat = {key: _unwrapped(value) for key, value in part.items()}
        if isinstance(words := flat.get("description"), str):
            flat["description"] = " ".join(words.split())
        return flat
    return [_unwrapped(item) for item in part] if isinstance(part, list) else part


def write_schema(path: Path) -> None:
    """Write the schema to ``path`` in one step: a reader sees the old file or the new one, whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(schema_text())
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nndiag.report.schema PATH")
    write_schema(Path(sys.argv[1]))
