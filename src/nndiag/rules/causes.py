"""Which finding of a node or layer follows from which other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from nndiag.rules.base import Hit

FOLLOWS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "ND101",
        frozenset(
            [
                "ND102",
                "ND103",
                "ND104",
                "ND201",
                "ND202",
                "ND203",
                "ND204",
                "ND206",
                "ND251",
                "ND301",
                "ND302",
                "ND303",
                "ND304",
                "ND401",
                "ND402",
                "ND403",
                "ND404",
            ]
        ),
    ),
    ("ND102", frozenset(["ND201", "ND202", "ND203", "ND204", "ND301", "ND304", "ND401"])),
    (
        "ND103",
        frozenset(["ND202", "ND203", "ND204", "ND301", "ND302", "ND303", "ND304", "ND401", "ND402", "ND404"]),
    ),
    ("ND201", frozenset(["ND203", "ND204", "ND301", "ND304", "ND401"])),
    ("ND202", frozenset(["ND203", "ND301", "ND304", "ND401"])),
    ("ND104", frozenset(["ND206"])),
    ("ND203", frozenset(["ND204", "ND301", "ND304", "ND401"])),
    ("ND304", frozenset(["ND301", "ND401"])),
    ("ND301", frozenset(["ND401"])),
    ("ND402", frozenset(["ND404"])),
    ("ND252", frozenset(["ND250", "ND251", "ND350"])),
    ("ND501", frozenset(["ND502", "ND503", "ND504"])),
)
"""Causes, the deepest first, each with what follows from it where both hold at one place."""


def cause_of(code: str, present: Collection[str]) -> str | None:
    """Return the deepest finding among those present from which ``code`` follows, or ``None``."""
    for cause, consequences in FOLLOWS:
        if cause in present and code in consequences and cause != code:
            return cause
    return None


NEARLY_ALL = 0.9
"""Share of a layer's degenerate nodes that must have one cause for the layer's finding to name it."""

_SHARED = (
    ("ND102", None, "their incoming weights have collapsed"),
    ("ND201", "bias", "their biases ran away"),
    ("ND201", None, "they never fire"),
    ("ND202", None, "they are saturated"),
    ("ND304", None, "nothing listens to them"),
    ("ND401", "outputs", "the outputs hardly move without them"),
)


def shared_cause(hits: Mapping[str, Sequence[Hit]], degenerate: Sequence[int]) -> tuple[str, str] | None:
    """Return the finding that nearly all degenerate nodes of a layer have, and what to say of them; the deepest first.

    Args:
        hits: the findings of the layer's nodes by code.
        degenerate: the indices of its degenerate nodes.
    """
    for code, reason, words in _SHARED:
        found = [hit for hit in hits.get(code, ()) if reason is None or hit.evidence.get("reason") == reason]
        if degenerate and len({hit.index for hit in found} & {*degenerate}) >= NEARLY_ALL * len(degenerate):
            return code, words
    return None
