"""The program on hostile input: how it ended, in one line, and whether a payload ran."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nndiag.cli import main
from tests.cli.support import Ended

Program = Callable[..., Ended]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What every payload creates; no test may leave it there after nndiag has run."""
    return tmp_path / "ran"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty directory to scan."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def scan(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    """Run ``nndiag scan`` in this process, with an empty standard input and no terminal."""
    monkeypatch.chdir(run)
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def ended(*words: object) -> Ended:
        capfd.readouterr()
        code = main(["scan", *(str(word) for word in words)])
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return ended


@pytest.fixture
def refused(scan: Program, marker: Path) -> Callable[..., str]:
    """Run ``nndiag scan``, check that it ended in exit code 3 and one printable line, and return the line."""

    def line(*words: object, code: int = 3) -> str:
        before = set(os.listdir())
        said = scan(*words).failed(code)
        assert said.isprintable()
        assert "internal error" not in said
        assert not marker.exists()
        assert set(os.listdir()) == before  # nothing half-written
        return said

    return line
