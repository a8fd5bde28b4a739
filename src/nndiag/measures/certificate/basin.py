"""The basin of a minimum: from how far away plain gradient descent still returns.

Descent from the checkpoint itself leads to the reference, which is the checkpoint where the gradient is zero and close
to it where it is noise. A trial that starts elsewhere has returned where its loss is back, up to a share of what it was
too high, where it is no farther from the reference than it began, and where the loss falls all the way along the
straight line that is left: another minimum may be as low, and as near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nndiag.measures.certificate.objective import Objective
from nndiag.records.measured import Basin, BasinRadius

STEPS = 20
"""Of a trial at a learning rate of 1/λ_max; enough for directions down to a thirtieth of λ_max."""
LEAST_RATE = 0.5
"""Smaller learning rates than this over λ_max are raised to it: they follow the same path in smaller steps."""
BACK, SETTLED = 0.25, 0.01
"""Shares of the excess loss that may be left at the last step, and that end a trial before it."""
NEAR, LOST = 1.1, 10.0
"""Distances from the reference, relative to the start's, up to which a trial is near, and beyond which it is gone."""
LINE = 5
"""Points at which the loss on the way to the reference is looked at."""
RISE = 0.05
"""Share of the excess loss by which it may rise on that way."""
FIRST, SMALLEST, LARGEST = 1 / 4, 2.0**-10, 4.0
"""Distances tried, in norms of the parameters."""
HALVINGS = 4
RANDOM_DIRECTIONS = 4
PASSES_A_STEP = 30
"""Passes over the probe that a basin may cost for each step of a trial, a third of them for each kind of direction."""

Outcome = Literal["returned", "left", "slow"]
Direction = Literal["sharpest", "flattest", "random"]


@dataclass(frozen=True)
class _Descent:
    """Plain gradient descent, where it leads from the checkpoint, and the loss there.

    ``rounding`` is that of the loss; ``slack`` adds how far the loss still fell on the way from the checkpoint.
    """

    objective: Objective
    rate: float
    steps: int
    reference: Tensor
    loss: float
    rounding: float
    slack: float

    @property
    def passes(self) -> int:
        """The most that a trial may cost."""
        return self.steps + 1 + LINE

    def trial(self, start: Tensor) -> Outcome:
        """Descend from ``start`` and say whether it returned."""
        began = float((start - self.reference).norm())
        point, first, last = start, math.inf, math.inf
        for step in range(self.steps + 1):
            loss, gradient = self.objective.at(point)
            distance = float((point - self.reference).norm())
            if not math.isfinite(loss) or not distance <= LOST * began:
                return "left"
            excess = abs(loss - self.loss)
            first = excess if step == 0 else first
            settled = excess <= max(self.slack, SETTLED * first if step else 0.0)
            if settled or step == self.steps or abs(last - loss) <= self.rounding:
                break
            point, last = point - self.rate * gradient, loss
        if distance > NEAR * began or not self._downhill(point, loss):
            return "left"
        if excess <= max(self.slack, BACK * first):
            return "returned"
        return "slow" if loss < last - self.rounding else "left"

    def _downhill(self, point: Tensor, loss: float) -> bool:
        """Whether the loss falls all the way from ``point`` straight to the reference."""
        allowed = self.slack + RISE * abs(loss - self.loss)
        lowest = loss
        for part in range(1, LINE + 1):
            between, _ = self.objective.at(point + (self.reference - point) * (part / (LINE + 1)))
            if not between <= lowest + allowed:
                return False
            lowest = min(lowest, between)
        return self.loss <= lowest + allowed


def passes_allowed(rate_known: bool) -> int:
    """Return the most passes that a basin may cost, where the learning rate is ``1/λ_max`` or known."""
    return round(PASSES_A_STEP * STEPS / (LEAST_RATE if rate_known else 1.0))


def basin(
    objective: Objective,
    vectors: Mapping[str, Tensor],
    largest: float,
    learning_rate: float | None,
    generator: torch.Generator,
    progress: Callable[[int, int], None],
) -> Basin:
    """Return how far along the extreme eigenvectors and random directions descent returns.

    The distance is doubled, or halved, from ``‖θ‖/4`` until the outcome changes, and the bracket then halved four
    times. At most 30 passes over the probe for each of the 20 to 40 steps of a trial; where they run out, the bracket
    stays as wide as it is. The parameters are put back bit for bit.

    Args:
        objective: the loss.
        vectors: unit eigenvectors, ``"sharpest"`` of λ_max and ``"flattest"`` of λ_min; both signs are tried.
        largest: λ_max, above zero.
        learning_rate: of plain gradient descent; ``None`` for ``1/λ_max``.
        generator: source of the random directions.
        progress: told of the passes done and allowed.
    """
    origin, before = objective.point(), objective.passes
    norm = float(origin.norm()) or 1.0
    rate = 1 / largest if learning_rate is None else max(learning_rate, LEAST_RATE / largest)
    steps = round(STEPS / min(1.0, rate * largest))
    most = PASSES_A_STEP * steps
    ways = _directions(origin, vectors, generator)
    radii = []
    with objective.moving():
        descent = _from(objective, origin, rate, steps, largest)
        for place, (name, units) in enumerate(ways.items(), start=1):
            allowed = before + most * place // len(ways)

            def outcome(radius: float, units: list[Tensor] = units, allowed: int = allowed) -> Outcome | None:
                """Return the first outcome that is no return, or ``None`` where no passes are left."""
                for unit in units:
                    progress(objective.passes - before, most)
                    if objective.passes + descent.passes > allowed:
                        return None
                    if (ended := descent.trial(origin + radius * norm * unit)) != "returned":
                        return ended
                return "returned"

            radii.append(_bracket(name, len(units), outcome))
    return Basin(rate, steps, objective.passes - before, tuple(radii))


def _directions(
    origin: Tensor, vectors: Mapping[str, Tensor], generator: torch.Generator
) -> dict[Direction, list[Tensor]]:
    draws = torch.randn(RANDOM_DIRECTIONS, len(origin), generator=generator, dtype=origin.dtype)
    units = (draws / draws.norm(dim=1, keepdim=True)).to(origin.device)
    return {
        "sharpest": [vectors["sharpest"], -vectors["sharpest"]],
        "flattest": [vectors["flattest"], -vectors["flattest"]],
        "random": list(units),
    }


def _from(objective: Objective, origin: Tensor, rate: float, steps: int, largest: float) -> _Descent:
    """Descend from the checkpoint itself."""
    began, gradient = objective.at(origin)
    point, loss = origin, began
    for _ in range(steps):
        point = point - rate * gradient
        loss, gradient = objective.at(point)
    eps = torch.finfo(origin.dtype).eps
    rounding = 100 * eps * abs(loss) + largest * (eps * float(origin.norm())) ** 2
    return _Descent(objective, rate, steps, point, loss, rounding, rounding + abs(began - loss))


def _bracket(name: Direction, trials: int, outcome: Callable[[float], Outcome | None]) -> BasinRadius:
    """Find where the outcome changes, by doubling or halving and then bisection."""
    inside, outside, why = 0.0, None, None
    radius = FIRST
    while SMALLEST <= radius <= LARGEST and (ended := outcome(radius)) is not None:
        if ended == "returned":
            inside = radius
            if outside is not None:
                break
            radius *= 2
        else:
            outside, why = radius, ended
            if inside > 0:
                break
            radius /= 2
    for _ in range(HALVINGS if outside is not None else 0):
        assert outside is not None
        radius = (inside + outside) / 2
        if inside == 0 or (ended := outcome(radius)) is None:
            break
        if ended == "returned":
            inside = radius
        else:
            outside, why = radius, ended
    return BasinRadius(name, trials, inside, outside, why)
