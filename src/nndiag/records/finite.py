"""Numbers as a document holds them: one that is not finite is ``null``."""

from __future__ import annotations

import math


def finite(value: float | None) -> float | None:
    """Return a number where it is finite, else ``None``."""
    return value if value is not None and math.isfinite(value) else None
