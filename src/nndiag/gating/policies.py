"""Which policy counts: a file that is named, else the run's own, filled up by the user's project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nndiag.config.policy import Policy, parse_policy
from nndiag.config.toml_file import RUN_FILE, read_toml, user_table
from nndiag.errors import UsageError
from nndiag.records.document import Json, subject_of


def find_policy(document: Json, report: Path | None, file: Path | None, start: Path) -> Policy:
    """Return the policy for a report; an empty one where nobody gives any.

    Args:
        document: the report.
        report: where it lies; the run is also looked for from there.
        file: the policy that was named; then no other counts.
        start: the folder from which the user's ``pyproject.toml`` is searched upwards.

    Raises:
        UsageError: a file is missing or wrong, or the one that was named holds no policy.
    """
    if file is not None:
        return _named(file)
    run, user = _of_run(document, report), _of_user(start)
    return run.over(user)


def _named(file: Path) -> Policy:
    """Return the policy of a file: its ``[policy]``, ``[tool.nndiag.policy]``, or the keys themselves."""
    if not file.is_file():
        raise UsageError(f"--policy {file}", "there is no such file", "check the path")
    content = read_toml(file)
    inside = _inside(content, "tool", "nndiag", "policy")
    if inside is None:
        inside = content.get("policy", content)
        policy = parse_policy(inside, f"{file} [policy]" if "policy" in content else str(file))
    else:
        policy = parse_policy(inside, f"{file} [tool.nndiag.policy]")
    if policy.empty:
        raise UsageError(f"--policy {file}", "holds no policy", "write e.g. max_dead_fraction = 0.1 into it")
    return policy


def _of_run(document: Json, report: Path | None) -> Policy:
    """Return the policy beside the checkpoint, seen from here or from the report."""
    folder = Path(subject_of(document["checkpoints"][-1])).parent
    places = [folder] if report is None or folder.is_absolute() else [folder, report.parent / folder]
    for place in places:
        file = place / RUN_FILE
        if file.is_file():
            return parse_policy(read_toml(file).get("policy", {}), f"{file} [policy]")
    return Policy()


def _of_user(start: Path) -> Policy:
    found = user_table(start)
    if found is None:
        return Policy()
    table, file = found
    content = table.get("policy", {}) if isinstance(table, dict) else {}
    return parse_policy(content, f"{file} [tool.nndiag.policy]")


def _inside(content: dict[str, Any], *keys: str) -> object:
    found: object = content
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
