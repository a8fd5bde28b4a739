"""Print the performance tables: ``python -m benchmarks`` in the root of the repository, on an idle machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch

from benchmarks.heading import heading
from benchmarks.setting import Setting
from benchmarks.tables import TABLES


def main() -> None:
    options = parsed()
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(options.quick, torch.device(options.device))
    with page(options.output) as file:
        write(file, heading(setting, command()))
        for name in options.only or TABLES:
            print(name, file=sys.stderr, flush=True)
            torch.manual_seed(0)
            begun = time.perf_counter()
            write(file, TABLES[name](setting))
            setting.say(f"done in {time.perf_counter() - begun:.0f} s")


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", action="append", choices=TABLES, help="this table; repeatable")
    parser.add_argument("--quick", action="store_true", help="small networks: to see that the tables work")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--output", type=Path, help="write the page here as well, once it is whole")
    return parser.parse_args()


def command() -> str:
    """Return what was typed."""
    return " ".join(["python -m benchmarks", *sys.argv[1:]])


@contextmanager
def page(path: Path | None) -> Iterator[TextIO | None]:
    """Open a file beside ``path`` that takes its place in the end: a run that breaks off leaves the old one."""
    if path is None:
        yield None
        return
    part = path.with_suffix(f"{path.suffix}.part")
    try:
        with part.open("w") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(file: TextIO | None, lines: list[str]) -> None:
    """Print lines and add them to the page."""
    text = "\n".join(lines)
    print(text, flush=True)
    if file is not None:
        print(text, file=file, flush=True)


if __name__ == "__main__":
    main()
