"""A report as plain JSON: read from its file, and checked as far as ``gate`` and ``compare`` read it.

Neither pydantic nor numpy comes in: a build must not wait for them, nor a comparison of many reports for each node.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nndiag.errors import InputError
from nndiag.records.fitting import misfit

Json = Mapping[str, Any]

LARGEST = 2**31
"""Bytes of a report that are read."""

_SCAN = "make it with `nndiag scan PATH --output json=FILE`"


def load_document(path: Path) -> dict[str, Any]:
    """Return the JSON document of ``nndiag scan``.

    Raises:
        InputError: the file is missing or unreadable, or is no such document.
    """
    return parsed(content_of(path), path)


def content_of(path: Path) -> bytes:
    """Return the bytes of a report.

    Raises:
        InputError: the file is missing, unreadable, or too large.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(path, f"is larger than {LARGEST >> 30} GiB", "scan without --all-nodes")
        return path.read_bytes()
    except OSError as error:
        why = (
            "there is no such file"
            if isinstance(error, FileNotFoundError)
            else f"cannot be read ({error.strerror})"
        )
        raise InputError(path, why, f"check the path, or {_SCAN}") from error


def parsed(content: bytes, path: object) -> dict[str, Any]:
    """Return the document in the bytes of a report.

    Raises:
        InputError: they are no such document.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"is not JSON ({str(error)[:80]})", _SCAN) from error
    return checked(document, path)


def checked(document: object, path: object) -> dict[str, Any]:
    """Return a document that is a report of this version, or say what it is not.

    Raises:
        InputError: it is none, or has been damaged; the message says where.
    """
    if not isinstance(document, dict) or "schema_version" not in document:
        raise InputError(path, "is no report of nndiag", _SCAN)
    if document["schema_version"] != 1:
        why = f"has schema version {str(document['schema_version'])[:20]}, and this program reads version 1"
        raise InputError(path, why, "scan again, or use the version that wrote it")
    checkpoints = document.get("checkpoints")
    if not isinstance(checkpoints, list) or not checkpoints:
        raise InputError(path, "holds no checkpoint", _SCAN)
    if not all(_is_diagnosis(one) for one in checkpoints):
        raise InputError(path, "is no report of `nndiag scan`", _SCAN)
    if (wrong := misfit(document)) is not None:
        raise InputError(path, f"is damaged: {wrong}", "scan again")
    return document


def _is_diagnosis(found: object) -> bool:
    return (
        isinstance(found, dict)
        and all(isinstance(found.get(key), dict) for key in ("checkpoint", "model"))
        and all(isinstance(found.get(key), list) for key in ("layers", "nodes"))
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
            yield finding, node["layer"], node["index"]


NOISE = "the probe was random numbers and no data: what rests on it says little of the network on data"
"""What every report says whose numbers rest on such a probe."""


def caution_of(diagnoses: Iterable[Json]) -> str:
    """Return the sentence on random probes where any checkpoint was measured with one; else an empty one."""
    return NOISE if any(is_on_noise(one) for one in diagnoses) else ""


def is_on_noise(diagnosis: Json) -> bool:
    """Return whether the probe of a checkpoint was random numbers and no data."""
    probe = diagnosis.get("probe")
    return isinstance(probe, dict) and probe.get("random") is True


def subject_of(diagnosis: Json) -> str:
    """Return the path of the checkpoint, as the report has it."""
    return str(diagnosis["checkpoint"].get("path", ""))
