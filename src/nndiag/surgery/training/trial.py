"""Trying a change: it stays where the probe's loss allows it, else everything is as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nndiag.surgery.proof import Replayed, output_change
from nndiag.surgery.training.ward import Ward

Item = TypeVar("Item")
MAX_LOSS_INCREASE = 0.01
"""Share of the loss that treatments may cost where nothing else is said."""
FEWEST_SHARE = 8
"""A group that does harm is halved until its parts are an eighth of it, or single nodes where each has its price."""


@dataclass(frozen=True)
class Limit:
    """What changes may cost: the loss may exceed that of the network that came in by a share of it.

    Without a loss the outputs may change by as much. Where ``each`` is given, a change may cost no more than that share
    for each node that it concerns, beside the network as it is before the change: then a network in which nothing more
    can be changed is one in which the same attempts fail again.
    """

    before: Replayed
    share: float
    each: float | None = None

    def allows(self, after: Replayed, present: Replayed | None = None, nodes: int = 1) -> bool:
        """Whether a network is within the limit.

        Args:
            after: the network, changed.
            present: as it is before the change; that which came in where it is not given.
            nodes: how many nodes the change concerns.
        """
        if not after.finite or _cost(self.before, after) > self.share:
            return False
        return present is None or self.each is None or _cost(present, after) <= self.each * nodes

    def cost(self, after: Replayed, present: Replayed | None = None) -> str:
        """Return what a network would cost, for a sentence after "it would"."""
        before = self.before if present is None else present
        if not after.finite:
            return "make the outputs not finite"
        if before.loss is None or after.loss is None:
            return f"change the outputs by {100 * (output_change(before, after) or 0.0):.2g} % of their scale"
        return f"raise the loss from {before.loss:.4g} to {after.loss:.4g}"


def _cost(before: Replayed, after: Replayed) -> float:
    """Return by which share of it the loss has risen, or the outputs have changed where there is no loss."""
    if before.loss is None or after.loss is None:
        change = output_change(before, after)
        return math.inf if change is None else change
    rise = after.loss - before.loss
    return 0.0 if rise <= 0 else math.inf if before.loss == 0 else rise / abs(before.loss)


def attempt(ward: Ward, limit: Limit, change: Callable[[], None], nodes: int | None = None) -> str | None:
    """Make a change; take it back, and return what it would have cost, where it costs more than it may.

    Args:
        ward: the network.
        limit: what may be lost.
        change: changes it.
        nodes: how many nodes that concerns; ``None`` where a change has no price for each.
    """
    state, reset = ward.state(), dict(ward.reset)
    present = ward.replay() if limit.each is not None and nodes is not None else None
    change()
    after = ward.replay()
    if limit.allows(after, present, nodes or 1):
        return None
    ward.put_back(state, reset)
    return limit.cost(after, present)


def attempt_parts(
    ward: Ward, limit: Limit, items: Sequence[Item], change: Callable[[Sequence[Item]], None]
) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Make a change to as many of some items as the limit allows: where all together are too many, to parts of them.

    Returns:
        The items that were changed, and the others, with what they would have cost.
    """
    smallest = 1 if limit.each is not None else max(1, len(items) // FEWEST_SHARE)
    done: list[Item] = []
    left: list[tuple[Item, str]] = []
    waiting = [list(items)]
    while waiting:
        part = waiting.pop(0)
        cost = attempt(ward, limit, lambda part=part: change(part), len(part))  # type: ignore[misc]
        if cost is None:
            done += part
        elif len(part) <= smallest:
            left += [(item, cost) for item in part]
        else:
            waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
    return done, left
