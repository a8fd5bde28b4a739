"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def section(title: str, *paragraphs: str) -> list[str]:
    """Return a heading and the paragraphs under it."""
    lines = [f"## {title}", ""]
    for paragraph in paragraphs:
        lines += [paragraph, ""]
    return lines


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return a table and an empty line after it."""
    shown = [head, ["---"] * len(head), *body]
    return [*("| " + " | ".join(line) + " |" for line in shown), ""]
