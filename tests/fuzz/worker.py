"""Run damaged inputs through the command line, in a forked process with limits on memory and time.

A case that kills its process, hangs or eats memory costs that process alone, and is named.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

import nndiag.cli.app as program
from tests.fuzz.mutate import damage
from tests.fuzz.valid import FORMATS, Format

torch.set_num_threads(1)  # a forked process would wait for the threads that only its parent has

MEMORY = 400 << 20
"""Bytes that a case may take beyond what the program itself has."""
CPU_SECONDS = 20
WALL_SECONDS = 120

_LINE = re.compile(r"error: [^\n]+?: [^\n]+; [^\n]+\n")
_EXHAUSTED = re.compile("out of memory|does not fit into memory|internal error")


@dataclass(frozen=True)
class Outcome:
    """How a case ended, in a word or two; ``wrong`` says what should not have happened."""

    number: int
    ended: str
    wrong: str = ""


class Source:
    """The valid files of one format, and what a number makes of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.format: Format = FORMATS[name]
        with tempfile.TemporaryDirectory() as folder:
            self.format.write(Path(folder))
            self.files = {
                str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }
        self.targets = [
            name for name in self.files if any(Path(name).match(pattern) for pattern in self.format.damaged)
        ]
        # each of its parts is damaged as often as a file that is all of its format
        self.share = len(self.targets) * self.format.parts

    def case(self, number: int) -> tuple[str, bytes]:
        """Return the file that is damaged, and its bytes."""
        rng = Random(f"{self.name} {number}")
        name = rng.choice(self.targets)
        return name, damage(self.files[name], list(self.files.values()), rng)

    def write(self, folder: Path) -> None:
        """Write the valid files."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def run(source: Source, numbers: range) -> Iterator[Outcome]:
    """Yield how each case ended; a process that dies is followed by another, behind the case that killed it."""
    at = numbers.start
    while at < numbers.stop:
        for outcome in _in_child(source, range(at, numbers.stop)):
            at = outcome.number + 1
            yield outcome


def _in_child(source: Source, numbers: range) -> Iterator[Outcome]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            _work(source, numbers, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    begun = numbers.start
    with os.fdopen(reading, encoding="utf-8") as stream:
        for line in stream:
            said = json.loads(line)
            if isinstance(said, int):
                begun = said
            else:
                yield Outcome(*said)
                begun = -1
    status = os.waitpid(child, 0)[1]
    if status:
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
        limits = {"SIGPROF": "took too long", "SIGALRM": "hung"}
        yield Outcome(begun, "died", limits.get(ended, f"its process ended with {ended}"))


def _work(source: Source, numbers: range, writing: int) -> None:
    """Run cases and report each before and after."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    # Building the parser takes three times as long as most cases do.
    program.get_command = functools.cache(program.get_command)

    def say(what: object) -> None:
        os.write(writing, (json.dumps(what) + "\n").encode())

    with tempfile.TemporaryDirectory() as folder, source.format.reading():
        source.write(Path(folder))
        os.chdir(folder)
        capture = _Capture()
        for number in numbers:
            say(number)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            say([number, *one(source, number, capture.run)])
        os.chdir("/")


def one(
    source: Source, number: int, run_main: Callable[[list[str]], tuple[int, str, str]]
) -> tuple[str, str]:
    """Run one case in the working directory, which holds the valid files; return how it ended, and what is wrong."""
    name, content = source.case(number)
    Path(name).write_bytes(content)
    try:
        code, out, err = run_main(["scan", *source.format.words])
    finally:
        Path(name).write_bytes(source.files[name])
    return f"exit {code}", _wrong(source.format, code, out, err)


def _wrong(form: Format, code: int, out: str, err: str) -> str:
    if code not in form.codes:
        return f"exit {code}: {err[:200]!r}"
    if code == 0:
        return _not_json(out) or (f"says {err[:200]!r}" if err else "")
    if out or not _LINE.fullmatch(err) or not err.rstrip("\n").isprintable():
        return f"not one line: {err[:400]!r}"
    return f"exhausted: {err[:200]!r}" if _EXHAUSTED.search(err) else ""


def _not_json(out: str) -> str:
    try:
        json.loads(out, parse_constant=lambda word: 1 / 0)
    except (ValueError, ZeroDivisionError) as error:
        return f"not JSON: {error}"
    return ""


class _Capture:
    """Standard output and error of this process as files, so that what C code prints is seen too."""

    def __init__(self) -> None:
        self.files = {fd: os.memfd_create(f"fd{fd}") for fd in (1, 2)}
        for fd, file in self.files.items():
            os.dup2(file, fd)

    def run(self, words: list[str]) -> tuple[int, str, str]:
        """Run the program with these words; return its exit code and what it printed."""
        for file in self.files.values():
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
        code = program.main(words)
        out, err = (
            os.pread(file, os.fstat(file).st_size, 0).decode("utf-8", "replace")
            for file in self.files.values()
        )
        return code, out, err
