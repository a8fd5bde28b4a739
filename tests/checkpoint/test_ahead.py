"""The bytes of a file, read by one thread while another works on them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nndiag.checkpoint import ahead
from nndiag.checkpoint.ahead import read_ahead
from nndiag.checkpoint.digest import Digest
from nndiag.checkpoint.source import Watched
from nndiag.errors import InputError


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "CHUNK", 8)


def watched(folder: Path, count: int) -> Watched:
    path = folder / "f"
    path.write_bytes(bytes(i % 251 for i in range(count)))
    return Watched(path)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 24, 25, 1000])
def test_every_byte_comes_once_and_in_order(tmp_path: Path, count: int) -> None:
    file = watched(tmp_path, count)
    assert b"".join(bytes(chunk) for chunk in read_ahead(file)) == file.path.read_bytes()


@pytest.mark.parametrize("left", [0, 8, 12])
def test_a_file_cut_short_meanwhile_is_said_where_the_hash_is_asked_for(tmp_path: Path, left: int) -> None:
    file = watched(tmp_path, 1000)
    os.truncate(file.path, left)
    with pytest.raises(InputError, match="changed while it was read"):
        Digest({"": file}).hexdigest()


def test_what_the_system_says_of_the_second_file_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    first, second = watched(tmp_path / "a", 100), watched(tmp_path, 100)
    preadv = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if descriptor == second.descriptor:
            raise OSError(5, "Input/output error")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(InputError, match=f"{second.path}: cannot be read: input/output error"):
        Digest({"a": first, "b": second}).hexdigest()


def test_no_thread_is_left_behind_by_who_wants_no_more(tmp_path: Path) -> None:
    before = threading.active_count()
    chunks = read_ahead(watched(tmp_path, 1000))
    assert bytes(next(chunks)) == bytes(range(8))
    assert threading.active_count() == before + 1
    reader = threading.enumerate()[-1]
    del chunks
    reader.join(timeout=60)
    assert threading.active_count() == before
