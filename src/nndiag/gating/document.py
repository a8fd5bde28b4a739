"""A report as plain JSON, checked as far as the gate reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nndiag.errors import InputError

Json = Mapping[str, Any]

LARGEST = 2**31
"""Bytes of a report that are read."""

_SCAN = "make it with `nndiag scan PATH --output json=FILE`"


def load_document(path: Path) -> dict[str, Any]:
    """Return the JSON document of ``nndiag scan``.

    Raises:
        InputError: the file is missing or unreadable, or is no such document.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(path, f"is larger than {LARGEST >> 30} GiB", "scan without --all-nodes")
        text = path.read_bytes()
    except OSError as error:
        why = (
            "there is no such file"
            if isinstance(error, FileNotFoundError)
            else f"cannot be read ({error.strerror})"
        )
        raise InputError(path, why, f"check the path, or {_SCAN}") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"is not JSON ({str(error)[:80]})"
        raise InputError(path, why, _SCAN) from error
    return checked(document, path)


def checked(document: object, path: object) -> dict[str, Any]:
    """Return a document that is a report of this version, or say what it is not.

    Raises:
        InputError: it is none.
    """
    if not isinstance(document, dict) or "schema_version" not in document:
        raise InputError(path, "is no report of nndiag", _SCAN)
    if document["schema_version"] != 1:
        why = f"has schema version {str(document['schema_version'])[:20]}, and this program reads version 1"
        raise InputError(path, why, "scan again, or use the version that wrote it")
    checkpoints = document.get("checkpoints")
    if not isinstance(checkpoints, list) or not checkpoints:
        raise InputError(path, "holds no checkpoint", _SCAN)
    for found in checkpoints:
        if not _is_diagnosis(found):
            raise InputError(path, "is no report of `nndiag scan`", _SCAN)
    return document


def _is_diagnosis(found: object) -> bool:
    return (
        isinstance(found, dict)
        and all(isinstance(found.get(key), dict) for key in ("checkpoint", "model"))
        and isinstance(found.get("level"), str)
        and all(_are_places(found.get(key), word) for key, word in (("layers", "name"), ("nodes", "layer")))
        and all(isinstance(layer.get("verdicts"), dict) for layer in found["layers"])
        and all(isinstance(layer.get("nodes"), int) for layer in found["layers"])
    )


def _are_places(rows: object, word: str) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get(word), str) for row in rows
    )


def found_in(diagnosis: Json) -> Iterator[tuple[Json, str | None, int | None]]:
    """Yield every finding of one checkpoint with its layer and node, ``None`` where it is on neither."""
    for finding in diagnosis["model"].get("findings", ()):
        yield finding, None, None
    for layer in diagnosis["layers"]:
        for finding in layer.get("findings", ()):
            yield finding, layer["name"], None
    for node in diagnosis["nodes"]:
        for finding in node.get("findings", ()):
            yield finding, node["layer"], node.get("index")


def subject_of(diagnosis: Json) -> str:
    """Return the path of the checkpoint, as the report has it."""
    return str(diagnosis["checkpoint"].get("path", ""))
