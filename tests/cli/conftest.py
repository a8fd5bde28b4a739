from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nndiag.cli import main
from tests.cli.support import Ended, write_files

Cli = Callable[..., Ended]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the small network's files, which is also the working directory."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def cli(work: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process: what a real one prints and returns, without its start."""

    def run(*words: object) -> Ended:
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
