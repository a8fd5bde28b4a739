"""The stages in a row: from paths and settings to a report.

``scan``, ``compare``, ``gate`` and ``heal`` are what the command line and library users call. Names are loaded when
they are first used: the settings can be checked before torch is there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nndiag.pipeline.comparing import CompareSettings, compare
    from nndiag.pipeline.gating import assert_healthy, gate
    from nndiag.pipeline.healing import HealSettings, heal
    from nndiag.pipeline.listener import Listener
    from nndiag.pipeline.scanning import Outcome, scan
    from nndiag.pipeline.settings import ScanSettings

__all__ = [
    "CompareSettings",
    "HealSettings",
    "Listener",
    "Outcome",
    "ScanSettings",
    "assert_healthy",
    "compare",
    "gate",
    "heal",
    "scan",
]

_PLACES = {
    "CompareSettings": "comparing", "Listener": "listener", "Outcome": "scanning", "ScanSettings": "settings",
    "assert_healthy": "gating", "compare": "comparing", "gate": "gating", "scan": "scanning",
    "HealSettings": "healing", "heal": "healing",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
