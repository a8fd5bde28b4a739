"""The constant of the escape time, on bandits simulated here and by the benchmark's script."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.gravity_well import Bandit

from nndiag.rules.outputs import escape_steps
from nndiag.rules.thresholds import thresholds


@pytest.mark.parametrize("gap", [1.0, 0.4])
@pytest.mark.parametrize(("actions", "spread"), [(2, 1), (6, 1), (6, 5), (30, 1)])
@pytest.mark.parametrize("best", [1e-3, 4e-4])
def test_no_corner_is_left_before_the_bound(best: float, actions: int, spread: int, gap: float) -> None:
    taken = Bandit(actions, gap, 1.0, best, spread).escape()
    assert taken >= escape_steps(best, gap)
    if spread == 1:
        assert taken <= 1.02 * escape_steps(best, gap)  # and the bound is tight at a corner


def test_a_smaller_learning_rate_takes_longer() -> None:
    assert Bandit(3, 1.0, 0.5, 1e-3).escape() >= 1.9 * escape_steps(1e-3)


def test_two_actions_by_hand() -> None:
    """With two actions the log-odds grow by 2ηΔπ²(1 − π)²/(π(1 − π)): iterated here without softmax or vectors."""
    odds, steps = 1e-3 / (1 - 1e-3), 0
    while odds / (1 + odds) <= 0.1:
        p = odds / (1 + odds)
        odds *= np.exp(2 * p * (1 - p))
        steps += 1
    assert Bandit(2, 1.0, 1.0, 1e-3).escape() == steps


def test_the_constant_holds_where_wells_are_looked_for() -> None:
    assert thresholds()["well_probability"] <= 1e-3
    assert escape_steps(0.0) == np.inf
