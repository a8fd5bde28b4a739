"""One reading of a file in a process of its own, for its time and memory: started by the reading table, prints JSON.

``python -m benchmarks.reading sum|hash|scan FILE`` sums every tensor of a safetensors file, takes its SHA-256 alone, or
scans it.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

import nndiag
from benchmarks.peak import most_in_use
from nndiag.checkpoint.digest import Digest
from nndiag.checkpoint.source import Watched
from nndiag.records.level import Level


@dataclass(frozen=True)
class Reading:
    """Seconds, and bytes resident at most: before the file was opened, and in all."""

    seconds: float
    before: int
    most: int


def main() -> None:
    what, file = sys.argv[1:]
    scan = nndiag.scan  # loads all that it needs
    before = most_in_use(torch.device("cpu"))
    begun = time.perf_counter()
    if what == "sum":
        with safe_open(file, framework="pt") as opened:
            for name in opened.offset_keys():
                float(opened.get_tensor(name).sum())
    elif what == "hash":
        Digest({"": Watched(Path(file))}).hexdigest()
    else:
        scan(file, nndiag.ScanSettings(level=Level.WEIGHTS))
    seconds = time.perf_counter() - begun
    print(json.dumps(asdict(Reading(seconds, before, most_in_use(torch.device("cpu"))))))


if __name__ == "__main__":
    main()
