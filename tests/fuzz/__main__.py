"""The long run: ``python -m tests.fuzz`` damages valid files of every format and says how the program took it.

Exits with 1 where a case ended in anything but a report or one line, and names the case.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from nndiag.cli import main as nndiag
from tests.fuzz.valid import FORMATS
from tests.fuzz.worker import Outcome, Source, run


def main() -> int:
    """Run cases of each format until the time is over, or as many as were asked for."""
    asked = _arguments()
    if asked.keep is not None:
        return _keep(asked.format[0], asked.first, asked.keep)
    failures = 0
    for name in asked.format:
        source = Source(name)
        _warm_up(source)
        begun = time.monotonic()
        count, first, wrong = Counter[str](), asked.first, list[Outcome]()
        while True:
            numbers = range(first, first + (asked.cases or 200))
            for outcome in run(source, numbers):
                count[outcome.ended] += 1
                if outcome.wrong:
                    wrong.append(outcome)
            first = numbers.stop
            if asked.cases or time.monotonic() - begun > 60 * asked.minutes / len(asked.format):
                break
        _print(name, count, wrong, time.monotonic() - begun)
        failures += len(wrong)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--format", action="append", choices=[*FORMATS], help="default: every format")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long, all formats together")
    parser.add_argument("--cases", type=int, help="how many of each format, whatever the time")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument(
        "--keep", type=Path, help="write the files of case --first of --format here, and scan them"
    )
    asked = parser.parse_args()
    asked.format = asked.format or [*FORMATS]
    return asked


def _warm_up(source: Source) -> None:
    """Import what a scan imports, once for all processes, and make sure that what is not damaged is scanned."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        source.write(Path(folder))
        with contextlib.chdir(folder):
            assert nndiag(["scan", *source.format.words]) == source.format.whole


def _print(name: str, count: Counter[str], wrong: list[Outcome], seconds: float) -> None:
    total = sum(count.values())
    ends = ", ".join(f"{ended} {number:,}" for ended, number in sorted(count.items()))
    print(f"{name:12} {total:7,} cases  {total / max(seconds, 1e-9):6.0f} a second  {ends}", flush=True)
    for outcome in wrong[:20]:
        print(f"  case {outcome.number}: {outcome.wrong}")
        print(f"    python -m tests.fuzz --format {name} --first {outcome.number} --keep CASE", flush=True)


def _keep(name: str, number: int, folder: Path) -> int:
    """Write the files of one case, and scan them without limits."""
    source = Source(name)
    folder.mkdir(parents=True, exist_ok=True)
    source.write(folder)
    file, content = source.case(number)
    (folder / file).write_bytes(content)
    print(
        f"damaged: {folder / file}; in {folder}: nndiag scan {' '.join(source.format.words)}", file=sys.stderr
    )
    os.chdir(folder)
    return nndiag(["scan", *source.format.words])


if __name__ == "__main__":
    sys.exit(main())
