"""The baseline: troubles that are known and tolerated until they get worse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nndiag.config.policy import Policy
from nndiag.errors import UsageError
from nndiag.gating.facts import Facts, Place, facts_of
from nndiag.records.document import checked
from nndiag.records.fitting import is_number
from nndiag.records.gate import Check

Baseline = Mapping[Place, float | None]
"""Known troubles by rule, layer and node, each with how bad it was where it comes in degrees."""

DEGENERATE, LOSS = "degenerate", "loss"
"""Words of entries that are no findings: a degenerate node, and the loss of the model."""

TOLERANCE = 0.01
"""Share by which an entry may differ before it counts as worse: machines round differently."""

_WRITE = "write one with --update-baseline"


def worse(now: float | None, then: float | None) -> bool:
    """Whether a trouble has grown beyond what rounding does."""
    if now is None or then is None:
        return False
    if math.isnan(now):
        return not math.isnan(then)
    return now > then + TOLERANCE * abs(then) + 1e-12


def entries_of(facts: Facts, checks: Iterable[Check]) -> dict[Place, float | None]:
    """Return what is tolerated of a checkpoint from now on: its findings, degenerate nodes, loss and failed limits.

    ``value`` of a failed limit is kept as it is for "max_…", negated for "min_…", so that more is always worse.
    """
    found: dict[Place, float | None] = {
        place: how_bad for place, how_bad in facts.findings.items() if facts.gravity[place] != "info"
    }
    for name, layer in facts.layers.items():
        for node in layer.degenerate:
            found[DEGENERATE, name, node] = None
    if facts.loss is not None and math.isfinite(facts.loss):
        found[LOSS, None, None] = facts.loss
    for check in checks:
        if not check.passed and check.code is None and check.value is not None:
            found[check.rule, check.layer, None] = signed(check.rule, check.value)
    return found


def signed(rule: str, value: float) -> float:
    """Return the value of a limit's check on a scale on which more is worse."""
    return -value if rule.startswith("min_") else value


def load_baseline(path: Path, policy: Policy) -> Baseline:
    """Return the entries of a baseline, or those that a report would write into one.

    Raises:
        UsageError: the file is missing, unreadable, or no baseline.
    """
    what = f"--baseline {path}"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(what, "there is no such file", _WRITE) from None
    except OSError as error:
        raise UsageError(what, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(what, "is not JSON", f"{_WRITE} anew") from error
    if isinstance(content, dict) and "checkpoints" in content:
        from nndiag.gating.checking import limits_of

        facts = facts_of(checked(content, path))
        return entries_of(facts, limits_of(facts, policy))
    return _parsed(content, what)


def _parsed(content: Any, what: str) -> Baseline:
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UsageError(what, "is neither a baseline nor a report", f"{_WRITE} anew")
    if content.get("schema_version") != 1:
        raise UsageError(what, "has another schema version", f"{_WRITE} anew")
    found: dict[Place, float | None] = {}
    for entry in entries:
        fits = (
            isinstance(entry, dict)
            and entry.keys() >= {"rule", "layer", "node", "value"}
            and all(
                isinstance(entry.get(key), kinds)
                for key, kinds in (("rule", str), ("layer", str | None), ("node", int | None))
            )
            and (entry["value"] is None or is_number(entry["value"]))
        )
        if not fits:
            raise UsageError(what, "holds an entry without rule, layer, node and value", f"{_WRITE} anew")
        found[entry["rule"], entry["layer"], entry["node"]] = entry["value"]
    return found


def baseline_text(entries: Baseline, version: str) -> str:
    """Return a baseline as JSON, one entry a line, in a fixed order: a change is a small difference."""
    rows = [
        json.dumps({"rule": rule, "layer": layer, "node": node, "value": value})
        for (rule, layer, node), value in sorted(entries.items(), key=_order)
    ]
    body = ",\n".join("    " + row for row in rows)
    inside = f"\n{body}\n  " if rows else ""
    return f'{{\n  "schema_version": 1,\n  "nndiag_version": {json.dumps(version)},\n  "entries": [{inside}]\n}}\n'


def _order(entry: tuple[Place, float | None]) -> tuple[str, str, int]:
    (rule, layer, node), _ = entry
    return rule, layer or "", -1 if node is None else node
