"""Reports: a diagnosis as text, one file per format. Nothing here measures, judges or imports torch.

``FORMATS`` maps the words of ``--format`` and ``--output`` to functions; ``render_terminal`` prints to a
screen.
"""

from __future__ import annotations

from collections.abc import Callable

from nndiag.records.report import Report
from nndiag.report.document import render_json, render_jsonl
from nndiag.report.markdown import render_markdown
from nndiag.report.terminal import render_terminal, render_text

FORMATS: dict[str, Callable[[Report], str]] = {
    "rich": render_text,
    "json": render_json,
    "jsonl": render_jsonl,
    "markdown": render_markdown,
}

__all__ = ["FORMATS", "render_json", "render_jsonl", "render_markdown", "render_terminal", "render_text"]
