"""From the words of the command line to the settings of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nndiag.errors import UsageError

if TYPE_CHECKING:
    from nndiag.pipeline.settings import ScanSettings


def scan_settings(
    *, level: str | None, cache: str, betas: str | None, memory_budget: str | None,
    allow_global: Sequence[str] | None, threads: int | None, **same: Any,
) -> ScanSettings:  # fmt: skip
    """Return the settings; what is in ``same`` has the same form there. ``model_args`` are read where torch is loaded.

    Raises:
        UsageError: an option is not what it must be.
    """
    from nndiag.config.sizes import parse_bytes
    from nndiag.pipeline.settings import ScanSettings
    from nndiag.records.level import Level

    found = ScanSettings(
        level=None if level is None else Level.parse(level),
        betas=_betas(betas),
        memory_budget=None if memory_budget is None else parse_bytes(memory_budget, "--memory-budget"),
        allow_global=tuple(allow_global or ()),
        cache=None if cache == "off" else cache,
        **same,
    )
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}", "is too small", "give at least 1")
    return found


def codes(words: Sequence[str] | None) -> tuple[str, ...]:
    """Return the codes of ``--select`` or ``--ignore``: repeated, or with commas between them."""
    return tuple(code.strip().upper() for word in words or () for code in word.split(",") if code.strip())


def _betas(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--betas {text}", "is not two numbers", "write --betas 0.9,0.999") from None
    return first, second
