"""Times of a comparison in the words of its picture: where both are known, the document counts in steps and the picture
in epochs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from nndiag.records.comparison import Comparison
from nndiag.report.numbers import number


@dataclass(frozen=True)
class Clock:
    """The times of the checkpoints on the document's clock, and in the unit that is shown, ``word``."""

    word: str
    times: tuple[float, ...]
    shown: tuple[float, ...]

    def near(self, time: float, error: float | None) -> str:
        """Return a time with its error, on the line between its neighbours or through the last two checkpoints."""
        return f"{self.word} {within(self._moment(time), self._length(error or 0.0))}"

    def lasting(self, length: float, error: float | None = None) -> str:
        """Return a length of time in words, with its error where there is one."""
        long = self._length(length)
        said = number(long) if error is None else within(long, self._length(error))
        return f"{said} {self.word}{'' if said == '1' else 's'}"

    def _moment(self, time: float) -> float:
        after = min(max(bisect_right(self.times, time), 1), len(self.times) - 1)
        start, end = self.times[after - 1], self.times[after]
        share = (time - start) / (end - start)
        return self.shown[after - 1] + share * (self.shown[after] - self.shown[after - 1])

    def _length(self, length: float) -> float:
        return length * (self.shown[-1] - self.shown[0]) / (self.times[-1] - self.times[0])


def clock_of(comparison: Comparison, word: str) -> Clock:
    """Return the clock of a comparison whose picture counts in ``word``."""
    count = comparison.settings["clock"]
    times = _counted(comparison, count)
    shown = times if word == count else _counted(comparison, word)
    return Clock(word, times, tuple(v + 1 for v in shown) if word == "checkpoint" else shown)


def _counted(comparison: Comparison, word: str) -> tuple[float, ...]:
    """Return the steps or epochs of the checkpoints, or their places."""
    marks = comparison.checkpoints
    if word == "checkpoint":
        return tuple(float(place) for place in range(len(marks)))
    return tuple(float((mark.step if word == "step" else mark.epoch) or 0) for mark in marks)


def within(value: float, error: float) -> str:
    """Return ``"1.4 ± 0.4"``: a number and its standard error, as exact as that is."""
    if not 1e-3 <= error < math.inf or not math.isfinite(value):
        return f"{number(value)} ± {number(error)}"
    places = max(0, -math.floor(math.log10(error)))
    return f"{value:,.{places}f} ± {error:,.{places}f}"
