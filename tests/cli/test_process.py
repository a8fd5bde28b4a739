"""The program as the shell sees it: start, signals, pipes, terminals, the environment."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.support import FULL, clean_environment, run_process, write_files

CATALOGUE = """
import sys
from nndiag.cli import main
code = main({words!r})
heavy = sorted(set(sys.modules) & {{"torch", "numpy", "safetensors", "rich.console"{more}}})
print(code, heavy, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("process")
    write_files(made)
    return made


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["--help"], ', "pydantic", "nndiag.rules"'),
        (["scan", "--help"], ""),  # typer itself brings pydantic in to read an option
        (["rules"], ""),
        (["explain", "ND201"], ""),
    ],
)
def test_quick_commands_import_nothing_heavy(folder: Path, words: list[str], more: str) -> None:
    code = CATALOGUE.format(words=words, more=more)
    ended = run_process(cwd=folder, launcher=("-c", code))
    assert ended.err == "0 []\n"
    assert ended.out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file here is always full")
def test_a_full_disk_is_said_in_one_line(folder: Path) -> None:
    for words in (("rules",), ("scan", "net.safetensors")):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [sys.executable, "-m", "nndiag", *words], cwd=folder, env=clean_environment(), stdout=full,
                stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        assert ended.returncode == 3
        assert ended.stderr.splitlines()[-1].startswith("error: stdout: there is no room")


def test_the_catalogue_itself_needs_no_pydantic(folder: Path) -> None:
    code = "import sys, nndiag.cli, nndiag.rules; print('pydantic' in sys.modules, 'numpy' in sys.modules)"
    assert run_process(cwd=folder, launcher=("-c", code)).out == "False False\n"


def test_help_fits_eighty_columns(folder: Path) -> None:
    for words in (("--help",), ("scan", "--help")):
        ended = run_process(*words, cwd=folder, COLUMNS="80")
        assert ended.code == 0
        assert max(map(len, ended.out.splitlines())) <= 80
        assert "Exit codes" in ended.out


def test_the_console_script_and_the_module(folder: Path) -> None:
    script = Path(sys.executable).with_name("nndiag")
    done = subprocess.run(
        [script, "scan", "net.safetensors", "--format", "json", "--fail-on", "error"],
        cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["schema_version"] == 1
    run_process("scan", "missing.pt", cwd=folder).failed(3)
    run_process("scan", "net.pt", "--bogus", cwd=folder).failed(2)


def _interruptible() -> None:
    """Undo what a shell does to a job in the background, which ignores interrupts, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt(folder: Path) -> None:
    marker = folder / "running"
    words = ("scan", "named.safetensors", "--model", "models.py:Slow", *FULL[2:], "--output", "json=out.json")
    before = set(folder.iterdir())
    program = subprocess.Popen(
        [sys.executable, "-m", "nndiag", *words],
        cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_interruptible,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < deadline and program.poll() is None:
            time.sleep(0.02)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=300)
    finally:
        program.kill()
    assert (program.returncode, out) == (3, "")
    assert err == "error: interrupted: the work was stopped before it was done; run it again\n"
    assert {file.name for file in set(folder.iterdir()) - before} <= {"running", "__pycache__"}


@pytest.mark.parametrize("form", ["rich", "json"])
def test_a_reader_that_has_enough(folder: Path, form: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = subprocess.run(
        [sys.executable, "-m", "nndiag", "scan", "net.pt", "--format", form, "--fail-on", "warning"],
        cwd=folder, env=clean_environment(), stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (program.returncode, program.stderr) == (0, "")


def test_foreign_output_and_encodings(folder: Path) -> None:
    """Prints of the model go to stderr, and an encoding without the signs of the report is no failure."""
    words = ("scan", "named.safetensors", "--model", "models.py:Talking", *FULL[2:])
    ended = run_process(*words, cwd=folder, PYTHONIOENCODING="ascii", COLUMNS="70")
    assert ended.code == 0
    assert "\x1b" not in ended.out + ended.err  # no colour in a file
    assert "hello" not in ended.out
    assert "hello from forward" in ended.err
    assert max(map(len, ended.out.splitlines())) <= 70
    explained = run_process("explain", "ND401", cwd=folder, PYTHONIOENCODING="ascii")
    assert (explained.code, explained.err) == (0, "")


def test_colour_in_a_file_when_asked_for(folder: Path) -> None:
    forced = run_process("scan", "run", *FULL, cwd=folder, FORCE_COLOR="1")
    assert "\x1b[" in forced.out
    assert "\x1b" not in forced.err  # no moving bar in a file


@pytest.mark.parametrize(
    ("environment", "bar", "colour"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_on_a_terminal(folder: Path, environment: dict[str, str], bar: bool, colour: bool) -> None:
    words = ("scan", "run", *FULL)
    code, seen = _on_terminal(words, folder, environment)
    assert code == 0
    assert ("checkpoint 1 of 3" in seen) is bar
    assert bool(re.search("\x1b\\[[0-9;]*[1-9][0-9;]*m", seen)) is colour
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h")  # the cursor is back


def _on_terminal(words: tuple[str, ...], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run the program with stdout and stderr on a terminal of its own."""
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "nndiag", *words],
        cwd=folder, env=clean_environment() | environment, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                seen += part
        return program.wait(timeout=300), seen.decode()
    finally:
        program.kill()
        os.close(ours)
