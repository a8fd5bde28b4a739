"""Checks as SARIF 2.1.0: one result a rule and layer that failed, for code scanning.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0", sections 3.13 to 3.27, 3.49 and 3.58.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from nndiag.errors import printable
from nndiag.records.gate import Check, Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def render_sarif(verdict: Verdict, version: str) -> str:
    """Return the failed checks as one run; the rules that were checked are listed whether they failed or not."""
    rules = list(dict.fromkeys(check.rule for check in verdict.checks))
    driver = {
        "name": "nndiag",
        "version": version,
        "rules": [_rule(rule, verdict.checks) for rule in rules],
    }
    results = [_result(check, rules.index(check.rule), verdict.subject) for check in verdict.failed]
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    if verdict.caution:
        said = {"level": "note", "message": {"text": printable(verdict.caution)}}
        run["invocations"] = [{"executionSuccessful": True, "toolExecutionNotifications": [said]}]
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(rule: str, checks: Sequence[Check]) -> dict[str, Any]:
    look = next((check.look for check in checks if check.rule == rule and check.look), "")
    found: dict[str, Any] = {"id": _id(rule), "shortDescription": {"text": printable(rule)}}
    if look:
        found["help"] = {"text": printable(look)}
    return found


def _result(check: Check, place: int, subject: str) -> dict[str, Any]:
    where = "the model" if check.layer is None else f"layer {check.layer}"
    location: dict[str, Any] = {}
    if subject:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": quote(PurePath(subject).as_posix(), errors="backslashreplace")},
            "region": {"startLine": 1},
        }
    if check.layer is not None:
        name = printable(check.layer)
        location["logicalLocations"] = [{"name": name, "fullyQualifiedName": name, "kind": "module"}]
    found: dict[str, Any] = {
        "ruleId": _id(check.rule),
        "ruleIndex": place,
        "level": _LEVELS[check.gravity],
        "message": {"text": printable(f"{where}: {check.message}")},
        "locations": [location] if location else [],
        "partialFingerprints": {"ruleAndLayer/v1": _fingerprint(check)},
    }
    return found


def _fingerprint(check: Check) -> str:
    """Return what tells this result from others and stays the same from build to build."""
    key = json.dumps([check.rule, check.layer])
    return sha256(key.encode()).hexdigest()[:32]


def _id(rule: str) -> str:
    return printable(rule).replace(" ", "/")
