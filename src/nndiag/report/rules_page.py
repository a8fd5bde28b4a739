"""The page of all findings: ``python -m nndiag.report.rules_page PATH`` writes it."""

from __future__ import annotations

import sys
from pathlib import Path

from nndiag.comparing.catalogue import EVERY_RULE
from nndiag.rules.explaining import page

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nndiag.report.rules_page PATH")
    Path(sys.argv[1]).write_text(page(EVERY_RULE), encoding="utf-8")
