"""Bytes in words: what ``--memory-budget`` takes, and how amounts of memory are shown."""

from __future__ import annotations

import re
from decimal import Decimal

from nndiag.errors import UsageError

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_FORM = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str, option: str) -> int:
    """Return the bytes that ``4GiB``, ``500 MB`` or ``1073741824`` says.

    Args:
        text: a number, and a unit where it is not bytes.
        option: where it was given, for the error.

    Raises:
        UsageError: it says no amount of memory.
    """
    form = _FORM.fullmatch(text)
    factor = None if form is None else _UNITS.get(form[2].lower())
    if form is None or factor is None:
        units = "KiB, MiB, GiB, KB, MB or GB"
        raise UsageError(f"{option} {text}", "is no amount of memory", f"write e.g. {option} 4GiB ({units})")
    found = int(Decimal(form[1]) * factor)
    if found < 1:
        raise UsageError(f"{option} {text}", "is too small", f"write e.g. {option} 4GiB")
    return found


def bytes_in_words(size: float, *, up: bool = False) -> str:
    """Return an amount of memory for people, such as ``1.5GiB``; ``parse_bytes`` reads it.

    Args:
        size: in bytes.
        up: whether to round up and not to the nearest.
    """
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            tenths = -(-10 * int(size) // factor) if up else round(10 * size / factor)
            return f"{tenths / 10:g}{unit}"
    return f"{int(size)}B"
