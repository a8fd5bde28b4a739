"""Trying a change: it stays where the probe's loss allows it, else everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nndiag.surgery.proof import Replayed, output_change
from nndiag.surgery.training.ward import Ward

Item = TypeVar("Item")
FEWEST_SHARE = 8
"""A group that does harm is halved until its parts are an eighth of it."""


@dataclass(frozen=True)
class Limit:
    """What a change may cost: the loss may exceed that of the network that came in by a share of it.

    Without a loss the outputs may change by as much.
    """

    before: Replayed
    share: float

    def allows(self, after: Replayed) -> bool:
        """Whether a network is within the limit."""
        if not after.finite:
            return False
        if self.before.loss is None or after.loss is None:
            change = output_change(self.before, after)
            return change is not None and change <= self.share
        return after.loss <= self.before.loss + self.share * abs(self.before.loss)

    def cost(self, after: Replayed) -> str:
        """Return what a network would cost, for a sentence after "it would"."""
        if not after.finite:
            return "make the outputs not finite"
        if self.before.loss is None or after.loss is None:
            return f"change the outputs by {100 * (output_change(self.before, after) or 0.0):.2g} % of their scale"
        return f"raise the loss from {self.before.loss:.4g} to {after.loss:.4g}"


def attempt(ward: Ward, limit: Limit, change: Callable[[], None]) -> str | None:
    """Make a change; take it back, and return what it would have cost, where it costs more than it may."""
    state, reset = ward.state(), dict(ward.reset)
    change()
    after = ward.replay()
    if limit.allows(after):
        return None
    ward.put_back(state, reset)
    return limit.cost(after)


def attempt_parts(
    ward: Ward, limit: Limit, items: Sequence[Item], change: Callable[[Sequence[Item]], None]
) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Make a change to as many of some items as the limit allows: where all together are too many, to parts of them.

    Returns:
        The items that were changed, and the others, with what they would have cost.
    """
    smallest = max(1, len(items) // FEWEST_SHARE)
    done: list[Item] = []
    left: list[tuple[Item, str]] = []
    waiting = [list(items)]
    while waiting:
        part = waiting.pop(0)
        cost = attempt(ward, limit, lambda part=part: change(part))  # type: ignore[misc]
        if cost is None:
            done += part
        elif len(part) <= smallest:
            left += [(item, cost) for item in part]
        else:
            waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
    return done, left
