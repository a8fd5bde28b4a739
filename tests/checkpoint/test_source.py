from __future__ import annotations

import os
from pathlib import Path

import pytest

from nndiag.checkpoint.source import opened
from nndiag.errors import InputError

from .files import network, refusal, save


def test_missing(tmp_path: Path) -> None:
    refusal(tmp_path / "none.pt", "does not exist")


def test_directory(tmp_path: Path) -> None:
    refusal(tmp_path, "is a directory")


def test_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.touch()
    refusal(path, "is empty")


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    refusal(tmp_path / "x.pt", "not a regular file")


def test_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a possible file name"), opened(tmp_path / "a\0b"):
        pass
    refusal(tmp_path / ("a" * 300), "cannot be read")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(network().state_dict(), tmp_path / "x.pt")

    def refuse(name: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr(os, "open", refuse)
    refusal(path, "cannot be read: permission denied")


def test_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"abc")
    with pytest.raises(InputError, match="changed while it was read"), opened(path):
        path.write_bytes(b"abcd")


def test_name_with_control_characters_stays_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, opened(tmp_path / "a\n\x1b[31mb.pt"):
        pass
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
