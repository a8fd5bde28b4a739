from __future__ import annotations

import math

import pytest

from nndiag.report.numbers import duration, number, percent, plain_number, ranges, whole_percent


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0"),
        (1234, "1,234"),
        (1234.5, "1,230"),
        (0.9996, "1.00"),
        (999.6, "1,000"),
        (2.3026, "2.30"),
        (0.0123, "0.0123"),
        (0.000123, "1.23e-4"),
        (-1.5e7, "-1.50e7"),
        (999999.0, "1.00e6"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
        (True, "yes"),
        (5e-324, "4.94e-324"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.001, "0.001"), (5e-4, "5e-4"), (0.1, "0.1"), (100.0, "100"), (1e-5, "1e-5")]
)
def test_plain_number(value: float, shown: str) -> None:
    assert plain_number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown", "whole"),
    [
        (0.0, "0 %", "0 %"),
        (1.0, "100 %", "100 %"),
        (0.12, "12 %", "12 %"),
        (0.9999, "> 99.9 %", "> 99 %"),
        (1e-5, "< 0.1 %", "< 1 %"),
        (None, "–", "–"),
        (math.nan, "not finite", "not finite"),
    ],
)
def test_percent_never_rounds_to_none_or_all(share: float | None, shown: str, whole: str) -> None:
    assert percent(share) == shown
    assert whole_percent(share) == whole


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0123, "12 ms"), (3.21, "3.2 s"), (125.0, "2 min 5 s"), (3720.0, "1 h 2 min")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([9, 0, 1, 2, 3, 7]) == "0–3, 7, 9"
    assert ranges([0, 2, 4, 6, 8, 10, 12], limit=3) == "0, 2, 4, …"
