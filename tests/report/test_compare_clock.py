"""Times of a comparison in the words of its picture."""

from __future__ import annotations

import pytest

from nndiag.report.compare_clock import Clock, clock_of, within
from tests.comparing.runs import compared, diagnosis, layer


def test_steps_are_told_in_epochs_and_beyond_the_end_at_the_last_pace() -> None:
    clock = Clock("epoch", (0.0, 100.0, 300.0), (0.0, 1.0, 2.0))
    said = [clock.near(time, 75) for time in (0, 50, 100, 200, 300, 500)]
    assert said == [f"epoch {epoch} ± 0.5" for epoch in ("0.0", "0.5", "1.0", "1.5", "2.0", "3.0")]
    assert clock.lasting(75) == "0.500 epochs"
    assert clock.lasting(300, 15) == "2.0 ± 0.1 epochs"


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (165.4, 25.4, "165 ± 25"),
        (1.386, 0.359, "1.4 ± 0.4"),
        (0.5, 0.0, "0.500 ± 0"),
        (3, float("nan"), "3 ± not finite"),
    ],
)
def test_a_number_is_as_exact_as_its_error(value: float, error: float, said: str) -> None:
    assert within(value, error) == said


def test_the_clock_of_a_comparison() -> None:
    run = [diagnosis(layer("h"), step=10 * i, epoch=i) for i in range(3)]
    assert clock_of(compared(*run), "epoch") == Clock("epoch", (0.0, 10.0, 20.0), (0.0, 1.0, 2.0))
    bare = compared(*(diagnosis(layer("h")) for _ in range(3)))
    assert clock_of(bare, "checkpoint").near(0, 0.5) == "checkpoint 1.0 ± 0.5"
