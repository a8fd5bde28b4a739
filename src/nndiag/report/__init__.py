"""Reports: a diagnosis as text, one file per format. Nothing here measures, judges or imports torch.

``FORMATS`` maps the words of ``--format`` and ``--output`` to functions; ``render_terminal`` prints to a
screen. What a format needs is imported when it is used: the gate prints before pydantic is there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nndiag.records.report import Report
    from nndiag.report.document import render_json, render_jsonl
    from nndiag.report.markdown import render_markdown
    from nndiag.report.terminal import render_terminal, render_text

_PLACES = {
    "render_json": "document", "render_jsonl": "document", "render_markdown": "markdown",
    "render_terminal": "terminal", "render_text": "terminal",
}  # fmt: skip

CHECK_FORMATS = ("junit", "sarif", "github")
"""Formats of checks: one entry a rule and layer, never one a node."""


def _later(name: str) -> Callable[[Report], str]:
    def render(report: Report) -> str:
        text: str = __getattr__(name)(report)
        return text

    return render


FORMATS: dict[str, Callable[[Report], str]] = {
    "rich": _later("render_text"),
    "json": _later("render_json"),
    "jsonl": _later("render_jsonl"),
    "markdown": _later("render_markdown"),
}

__all__ = [
    "CHECK_FORMATS", "FORMATS", "render_json", "render_jsonl", "render_markdown", "render_terminal", "render_text",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
