"""The constant of the escape time from a softmax gravity well, on simulated single-state bandits.

``python -m benchmarks.gravity_well`` prints the table. A bandit has ``K`` actions, the best paying ``Δ`` more than the
others; the policy is ``softmax(θ)``, and full-gradient ascent steps ``θ += η π ⊙ (r − π·r)``. It has escaped when
``π(a*) > 0.1``, where the loss of reward falls below ``0.9 Δ``. The bound is ``t ≥ C/(Δ·π₁(a*))`` for every ``η ≤ 1``.

Source: Mei et al. 2020, "Escaping the gravitational pull of softmax", the theorem on the escape time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ESCAPED = 0.1
"""Probability of the best action from which on the corner counts as left."""


@dataclass(frozen=True)
class Bandit:
    """Actions, reward gap, learning rate, first probability of the best action, and over how many others the rest of
    the probability is spread: 1 is a corner.
    """

    actions: int
    gap: float
    rate: float
    best: float
    spread: int = 1

    def start(self) -> np.ndarray:
        """Return the logits of the first policy, the best action first."""
        wrong = self.actions - 1
        few = min(self.spread, wrong)
        tiny = self.best * 1e-3
        p = np.full(self.actions, tiny)
        p[0] = self.best
        p[1 : 1 + few] = (1 - self.best - tiny * (wrong - few)) / few
        return np.log(p)

    def escape(self) -> int:
        """Return the steps until the corner is left."""
        theta, reward = self.start(), np.zeros(self.actions)
        reward[0] = self.gap
        step = 0
        while True:
            p = np.exp(theta - theta.max())
            p /= p.sum()
            if p[0] > ESCAPED:
                return step
            theta = theta + self.rate * p * (reward - p @ reward)
            step += 1

    def constant(self) -> float:
        """Return the ``C`` for which the bound is met exactly: ``t · Δ · π₁(a*)``."""
        return self.escape() * self.gap * self.best


GRID = tuple(
    Bandit(actions, gap, rate, best, spread)
    for actions, spread in ((2, 1), (6, 1), (6, 5), (20, 1))
    for gap, rate in ((1.0, 1.0), (1.0, 0.5), (0.25, 1.0))
    for best in (1e-3, 3e-4, 1e-4)
)


def main() -> None:
    """Print the constant of every bandit, and the smallest."""
    print("actions  rest over  gap   rate  π(a*)   steps    C = t·Δ·π(a*)")
    found = []
    for bandit in GRID:
        steps = bandit.escape()
        found.append(steps * bandit.gap * bandit.best)
        print(
            f"{bandit.actions:7d}  {bandit.spread:9d}  {bandit.gap:<4g}  {bandit.rate:<4g}  "
            f"{bandit.best:<6g}  {steps:7,}  {found[-1]:.4f}"
        )
    print(f"smallest C: {min(found):.4f}")


if __name__ == "__main__":
    main()
