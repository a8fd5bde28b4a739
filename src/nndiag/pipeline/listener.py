"""Who is told what happens during a scan, and what is told once only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_NAMED = 3


class Listener(Protocol):
    """Told of what happens during a scan."""

    def note(self, sentence: str) -> None:
        """Something was chosen, assumed or left out."""

    def progress(self, what: str, share: float) -> None:
        """Work goes on: at what, and which share of the whole is done, from 0 to 1."""


class Silence:
    """A listener that keeps everything to itself."""

    def note(self, sentence: str) -> None:
        """Drop the sentence."""

    def progress(self, what: str, share: float) -> None:
        """Drop the news."""


class Notes:
    """Passes notes on to a listener: each once, and what concerns single checkpoints as one sentence at the
    end. ``heard`` is all of it, as it came.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._said: set[str] = set()
        self._of_checkpoints: dict[str, list[str]] = {}
        self.heard: list[tuple[str | None, str]] = []

    def say(self, sentence: str) -> None:
        """Pass a sentence on unless it is empty or was said before."""
        self.heard.append((None, sentence))
        if sentence and sentence not in self._said:
            self._said.add(sentence)
            self._listener.note(sentence)

    def say_of(self, checkpoint: str, sentence: str) -> None:
        """Keep a sentence about one checkpoint until :meth:`close`."""
        self.heard.append((checkpoint, sentence))
        self._of_checkpoints.setdefault(sentence, []).append(checkpoint)

    def close(self) -> None:
        """Say what was kept, once for all checkpoints that it concerns."""
        for sentence, names in self._of_checkpoints.items():
            self.say(f"{_listed(names)}: {sentence}")
        self._of_checkpoints.clear()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    if more < 2:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {more} more"
