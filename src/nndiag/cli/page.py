"""``python -m nndiag.cli.page PATH`` writes the catalogue as Markdown, as ``make rules`` does."""

from __future__ import annotations

import sys
from pathlib import Path

from nndiag.cli.catalogue import every_rule
from nndiag.rules.explaining import page

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nndiag.cli.page PATH")
    Path(sys.argv[1]).write_text(page(every_rule()), encoding="utf-8")
