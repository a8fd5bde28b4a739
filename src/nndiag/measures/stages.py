"""Progress of a measurement that is made of stages, as a share of the whole."""

from __future__ import annotations

from nndiag.measures.plan import Progress

FINE = 1000


class Stages:
    """Turns steps of stages into steps of the whole.

    Args:
        progress: told of the whole.
        weights: of the stages, in the order in which they come.
    """

    def __init__(self, progress: Progress, weights: list[float]) -> None:
        self._progress, self._left = progress, weights
        self._total = sum(weights) or 1.0
        self._before = self._now = 0.0

    def begin(self) -> None:
        """Go on to the next stage; one that was not foreseen takes part of what is left."""
        self._before += self._now
        self._now = self._left.pop(0) if self._left else (self._total - self._before) / 2

    def expect(self, weights: list[float]) -> None:
        """Say anew which stages are to come."""
        rest = self._total - self._before - self._now
        scale = rest / sum(weights) if weights else 0.0
        self._left = [weight * scale for weight in weights]

    def tell(self, what: str, done: float, total: float) -> None:
        """Tell of steps of the stage under way."""
        share = (self._before + self._now * min(1.0, done / max(total, 1))) / self._total
        self._progress(what, int(FINE * share), FINE)
