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
from dataclasses import dataclass, field
from pathlib import Path

from nndiag.cli import main as nndiag
from tests.fuzz.valid import FORMATS
from tests.fuzz.worker import Outcome, Source, run

AT_ONCE = 50
"""Cases of a part of a format in one round."""


@dataclass
class Tally:
    """How the cases of a format ended so far."""

    source: Source
    ended: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """How many cases there were."""
        return sum(self.ended.values())

    def run(self, first: int, cases: int) -> None:
        """Run so many cases for every part of the format, fewer where they take long."""
        begun = time.monotonic()
        share = self.source.share * self.source.format.often
        for outcome in run(self.source, range(round(first * share), round((first + cases) * share))):
            self.ended[outcome.ended] += 1
            if outcome.wrong:
                self.wrong += 1
                _print_wrong(self.source.name, outcome)
        self.seconds += time.monotonic() - begun


def main() -> int:
    """Run cases of each format in turn until the time is over, or as many as were asked for."""
    asked = _arguments()
    if asked.keep is not None:
        return _keep(asked.format[0], asked.first, asked.keep)
    tallies = [Tally(Source(name)) for name in asked.format]
    for tally in tallies:
        _warm_up(tally.source)
    begun, first = time.monotonic(), asked.first
    while first == asked.first or (not asked.cases and time.monotonic() - begun < 60 * asked.minutes):
        for tally in tallies:
            tally.run(first, asked.cases or AT_ONCE)
        first += asked.cases or AT_ONCE
    for tally in tallies:
        _print(tally)
    return 1 if any(tally.wrong for tally in tallies) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--format", action="append", choices=[*FORMATS], help="default: every format")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long, all formats together")
    parser.add_argument("--cases", type=int, help="how many of each part of a format, whatever the time")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case of a part")
    parser.add_argument(
        "--keep", type=Path, help="write the files of case number --first of --format here, and scan them"
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
        with contextlib.chdir(folder), source.format.reading():
            assert nndiag(["scan", *source.format.words]) == source.format.whole


def _print(tally: Tally) -> None:
    speed = tally.total / max(tally.seconds, 1e-9)
    ends = ", ".join(f"{ended} {number:,}" for ended, number in sorted(tally.ended.items()))
    name, parts = tally.source.name, tally.source.share
    print(f"{name:14} {tally.total:7,} cases of {parts} parts  {speed:6.0f} a second  {ends}", flush=True)


def _print_wrong(name: str, outcome: Outcome) -> None:
    print(f"{name} case {outcome.number}: {outcome.wrong}")
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
    with source.format.reading():
        return nndiag(["scan", *source.format.words])


if __name__ == "__main__":
    sys.exit(main())
