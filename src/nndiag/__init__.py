"""Nndiag: examine saved neural-network checkpoints.

The functions for library users are those of the command line, ``nndiag.scan``, ``nndiag.compare``, ``nndiag.gate`` and
``nndiag.heal``, ``nndiag.assert_healthy`` for tests and ``nndiag.Monitor`` for training loops. They are loaded when
they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nndiag.monitor import Monitor
    from nndiag.pipeline import (
        CompareSettings,
        HealSettings,
        Outcome,
        ScanSettings,
        assert_healthy,
        compare,
        gate,
        heal,
        scan,
    )
    from nndiag.surgery.deploying.widths import resize

__version__ = "0.1.0"
__all__ = [
    "CompareSettings", "HealSettings", "Monitor", "Outcome", "ScanSettings", "__version__", "assert_healthy",
    "compare", "gate", "heal", "resize", "scan",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "resize":
        from nndiag.surgery.deploying.widths import resize

        return resize
    if name == "Monitor":
        from nndiag.monitor import Monitor

        return Monitor
    from nndiag import pipeline

    return getattr(pipeline, name)
