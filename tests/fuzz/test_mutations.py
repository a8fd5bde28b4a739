"""A share of the damaged files of every format; ``make fuzz`` runs many more.

One process for half of the formats, because each costs the start of torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.valid import FORMATS

ROOT = Path(__file__).parents[2]
CASES = 96
"""Of every part of a format: each file to be damaged, and each that lies packed in one."""


@pytest.mark.parametrize("first", [0, 1])
def test_damaged_files_end_in_a_report_or_one_line(first: int) -> None:
    names = [*FORMATS][first::2]  # half of the formats each: two processes work beside each other
    asked = [word for name in names for word in ("--format", name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), *asked],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"^(\S+) +([\d,]+) cases of (\d+) parts ", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in said] == names
    for name, cases, parts in said:
        assert int(cases.replace(",", "")) == round(CASES * int(parts) * FORMATS[name].often)


def test_what_goes_wrong_is_named(tmp_path: Path) -> None:
    """The check itself can fail: a program that prints a traceback, dies, hangs or eats memory is found out."""
    program = tmp_path / "run.py"
    program.write_text(BROKEN)
    done = subprocess.run(
        [sys.executable, program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    for number, words in enumerate(
        ("not one line", "exit 1", "SIGSEGV", "took too long", "exhausted", "not JSON")
    ):
        assert any(line.startswith(f"{number} ") and words in line for line in lines), (
            done.stdout + done.stderr
        )
    assert len(lines) == 6


BROKEN = """
import os, signal, sys
sys.path.insert(0, ".")
import nndiag.cli.app as program
from nndiag.cli.endings import as_line, print_error
from tests.fuzz import worker

worker.CPU_SECONDS = 1
number = -1

def main(words):
    kind = int(open("number").read())
    if kind == 0:
        print("Traceback\\\\nerror: a: b; c", file=sys.stderr)
        return 3
    if kind == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    while kind == 3:
        pass
    if kind == 4:
        try:
            bytearray(1 << 34)
        except MemoryError as error:
            return print_error(*as_line(error))
    if kind == 5:
        print("[NaN]")
        return 0
    return kind

program.main = main
source = worker.Source("safetensors")
source.case = lambda number: ("number", str(number).encode())
source.files["number"] = b""
for outcome in worker.run(source, range(6)):
    print(outcome.number, outcome.wrong, flush=True)
"""
