"""The README keeps its word: its commands run, its output is real, its options and files exist."""

from __future__ import annotations

import contextlib
import html
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nndiag.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A command of the README, what is shown of its output, and the exit code that is stated."""

    command: str
    lines: tuple[str, ...]
    code: int


def shown() -> list[Shown]:
    found: list[Shown] = []
    for language, block in _FENCE.findall(README):
        if language == "console":
            for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, *lines = step.splitlines()
                if command == "echo $?":
                    found[-1] = Shown(found[-1].command, found[-1].lines, int(lines[0]))
                else:
                    found.append(Shown(command, tuple(lines), 0))
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the README, trained, and the sample checkpoints."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "sample_checkpoints").symlink_to(ROOT / "sample_checkpoints")
    (folder / "run").mkdir()
    for name, text in _NAMED.findall(README):
        (folder / name).write_text(text, encoding="utf-8")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        runpy.run_path("train.py")
        del sys.modules["model"]
    return folder


def test_there_are_commands_and_files() -> None:
    assert len(shown()) >= 6
    assert [name for name, _ in _NAMED.findall(README)] == ["model.py", "train.py", "run/nndiag.toml"]


@pytest.mark.parametrize("step", shown(), ids=lambda step: step.command)
def test_a_command_does_what_is_shown(
    step: Shown, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "80")
    program, *arguments = shlex.split(step.command)
    assert program == "nndiag"
    assert main(arguments) == step.code
    out, err = capsys.readouterr()
    printed = {_shape(line) for line in (out + err).splitlines()}
    trained_here = "sample_checkpoints" not in step.command
    for line in step.lines:
        # What was trained anew may tell a different story on another machine; its frame stays the same.
        if line != "…" and not (trained_here and _is_story(line)):
            assert _shape(line) in printed, line


def _shape(line: str) -> str:
    """Return a line without what another machine may round or time differently."""
    return " ".join(re.sub(r"[\d.]+( ?m?s\b)?", "0", line).split())


def _is_story(line: str) -> bool:
    return re.search(r"\d", line) is not None or line.lstrip()[:1] in set("↳→▲✗•·") or "unsteady" in line


def test_python_in_the_readme_prints_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = (block for kind, block in _FENCE.findall(README) if kind == "python" and "nndiag.scan" in block)
    (expected,) = (block for kind, block in _FENCE.findall(README) if kind == "text")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == expected


def test_every_option_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("scan", "compare", "gate", "heal"):
        assert main([command, "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", _without_comments(README)))
    assert len(named) > 10
    # options of other programs: `mypy --strict`, `pip install --index-url`
    assert named - known == {"--strict", "--index-url"}


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links
    missing = [
        link
        for link in links
        if not link.startswith("https://") and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert not missing


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test", "check"} <= named <= targets


def test_the_picture_shows_what_the_screen_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["scan", str(ROOT / "sample_checkpoints" / "dying_mlp"), "--quiet", "--level", "activations"])
        == 0
    )
    headline = capsys.readouterr().out.splitlines()[0]
    words = re.findall(r">([^<]+)</text>", (ROOT / "docs" / "scan.svg").read_text(encoding="utf-8"))
    picture = " ".join(html.unescape(part).replace("\N{NO-BREAK SPACE}", " ") for part in words)
    assert headline in picture


def _without_comments(text: str) -> str:
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
