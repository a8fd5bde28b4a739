"""What to write instead of a word that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word most like ``word``, upper and lower case alike, or ``None`` where none is like
    it.
    """
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean "data"?``, or a list of the known words where none is like ``word``."""
    names = sorted(known)
    close = nearest(word, names)
    if close is not None:
        return f'did you mean "{close}"?'
    return f"write one of {', '.join(names)}" if names else "remove it"
