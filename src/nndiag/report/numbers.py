"""Numbers as people read them: three significant digits, thousands separators, never NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

ABSENT = "–"
NOT_FINITE = "not finite"


def number(value: float | None) -> str:
    """Return ``value`` with three significant digits; whole numbers exactly, ``None`` as a dash."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return NOT_FINITE
    if value == 0:
        return "0"
    value = float(f"{value:.2e}")
    exponent = math.floor(math.log10(abs(value)))
    if not -3 <= exponent < 6:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:,.{max(0, 2 - exponent)}f}"


def plain_number(value: float | None) -> str:
    """Return ``value`` as :func:`number` does, without trailing zeros: for a setting."""
    shown = number(value)
    mantissa, power, exponent = shown.partition("e")
    if (not power and "." not in shown) or not mantissa[-1:].isdigit():
        return shown
    return mantissa.rstrip("0").rstrip(".") + power + exponent


def percent(share: float | None) -> str:
    """Return a share of one in percent, never rounding something to nothing, nor less than all to all."""
    if share is None:
        return ABSENT
    if not math.isfinite(share):
        return NOT_FINITE
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return plain_number(100 * share) + " %"


def whole_percent(share: float | None) -> str:
    """Return a share of one in whole percent, as narrow as can be: for a column."""
    if share is None or not math.isfinite(share):
        return percent(share)
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Return a time span in the unit that fits it."""
    if not math.isfinite(seconds):
        return NOT_FINITE
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def counted(count: int, noun: str) -> str:
    """Return ``"1 node"`` or ``"12 nodes"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ranges(indices: Sequence[int], limit: int = 6) -> str:
    """Return sorted indices as runs, e.g. ``"0–3, 7, 9, …"``, at most ``limit`` of them."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs[:limit]]
    return ", ".join(shown + ["…"] * (len(runs) > limit))
