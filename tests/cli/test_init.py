"""``nndiag init``, as a user runs it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli


def test_it_writes_once_and_says_what_comes_next(cli: Cli, work: Path) -> None:
    ended = cli("init", "run")
    assert ended.code == 0, ended.err
    written = (work / "run" / "nndiag.toml").read_text(encoding="utf-8")
    first, blank, *shown = ended.out.splitlines()
    assert first == "wrote run/nndiag.toml; look through it, then run nndiag scan run"
    assert blank == ""
    assert shown == written.splitlines()
    assert sorted(file.name for file in (work / "run").iterdir()) == [
        "epoch_1.safetensors", "epoch_10.safetensors", "epoch_2.safetensors", "nndiag.toml",
    ]  # fmt: skip
    assert "add --force" in cli("init", "run").failed(2)
    assert (work / "run" / "nndiag.toml").read_text(encoding="utf-8") == written
    assert cli("init", "run", "--force").code == 0
    assert cli("scan", "run", "--data", "probe.safetensors", "--quiet", "--format", "json").document()


def test_what_is_missing_is_one_line(cli: Cli, work: Path) -> None:
    assert "there is no such file" in cli("init", "gone").failed(3)
    (work / "empty").mkdir()
    assert "holds no checkpoint" in cli("init", "empty").failed(3)
    assert not (work / "empty" / "nndiag.toml").exists()


def test_a_link_in_place_of_the_file_is_not_followed_unasked(cli: Cli, work: Path) -> None:
    (work / "run" / "nndiag.toml").symlink_to(work / "elsewhere.toml")
    assert "is there already" in cli("init", "run").failed(2)
    assert not (work / "elsewhere.toml").exists()
