"""Those definitions of the published JSON schema of SARIF 2.1.0 that nndiag's documents use.

Retyped from the OASIS schema (``sarif-schema-2.1.0.json``, errata 01) with its own rules: what is required, patterns
and minima, closed objects. Properties that nndiag does not write are left out, so that one that it wrote by mistake
would be refused here, where the published schema might allow it.
"""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_INDEX = {"type": "integer", "minimum": -1, "default": -1}


def _closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/definitions/{name}"}


SARIF: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    **_closed(
        ("version", "runs"),
        **{
            "$schema": {"type": "string", "format": "uri"},
            "version": {"enum": ["2.1.0"]},
            "runs": {"type": ["array", "null"], "minItems": 0, "uniqueItems": False, "items": _ref("run")},
        },
    ),
    "definitions": {
        "run": _closed(
            ("tool",),
            tool=_ref("tool"),
            columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
            results={"type": ["array", "null"], "minItems": 0, "items": _ref("result")},
        ),
        "tool": _closed(("driver",), driver=_ref("toolComponent")),
        "toolComponent": _closed(
            ("name",),
            name=_TEXT,
            version=_TEXT,
            rules={"type": "array", "minItems": 0, "uniqueItems": True, "items": _ref("reportingDescriptor")},
        ),
        "reportingDescriptor": _closed(
            ("id",),
            id=_TEXT,
            shortDescription=_ref("multiformatMessageString"),
            help=_ref("multiformatMessageString"),
        ),
        "multiformatMessageString": _closed(("text",), text=_TEXT, markdown=_TEXT),
        "message": {**_closed((), text=_TEXT, markdown=_TEXT, id=_TEXT), "anyOf": [{"required": ["text"]}]},
        "result": _closed(
            ("message",),
            ruleId=_TEXT,
            ruleIndex=_INDEX,
            level={"enum": ["none", "note", "warning", "error"]},
            message=_ref("message"),
            locations={"type": "array", "minItems": 0, "items": _ref("location")},
            partialFingerprints={"type": "object", "additionalProperties": _TEXT},
        ),
        "location": _closed(
            (),
            physicalLocation=_ref("physicalLocation"),
            logicalLocations={
                "type": "array", "minItems": 0, "uniqueItems": True, "items": _ref("logicalLocation"),
            },
        ),
        "physicalLocation": {
            **_closed((), artifactLocation=_ref("artifactLocation"), region=_ref("region")),
            "anyOf": [{"required": ["address"]}, {"required": ["artifactLocation"]}],
        },
        "artifactLocation": _closed((), uri={"type": "string", "format": "uri-reference"}, index=_INDEX),
        "region": _closed((), startLine={"type": "integer", "minimum": 1}),
        "logicalLocation": _closed((), name=_TEXT, fullyQualifiedName=_TEXT, kind=_TEXT, index=_INDEX),
    },
}  # fmt: skip
