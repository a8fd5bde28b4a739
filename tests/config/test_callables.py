"""Specs that name code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nndiag.config.callables import load_callable, names_code, reason, running
from nndiag.errors import InputError, ModelError, NndiagError, UsageError


def load(spec: str, folder: Path) -> Any:
    return load_callable(spec, folder, "--model", ModelError)


@pytest.mark.parametrize("spec", ["m.py:build", "pkg.mod:build", "a/b.py:Net.small", "C:/x/m.py:build"])
def test_a_callable_is_told_from_a_file(spec: str) -> None:
    assert names_code(spec)


@pytest.mark.parametrize(
    "spec", ["probe.npz", "C:/x/probe.npz", "m.py", ":build", "m.py:", "m.py:a-b", "m.py:a."]
)
def test_a_file_is_told_from_a_callable(spec: str) -> None:
    assert not names_code(spec)


def test_a_file_may_import_its_siblings(tmp_path: Path) -> None:
    (tmp_path / "sibling_of_m.py").write_text("WIDTH = 7")
    (tmp_path / "m.py").write_text(
        "import sibling_of_m\nclass Net:\n  @staticmethod\n  def small(): return sibling_of_m.WIDTH"
    )
    before = list(sys.path)
    assert load("m.py:Net.small", tmp_path)() == 7
    assert sys.path == before
    assert not (tmp_path / "__pycache__").exists()
    assert "m" not in sys.modules
    sys.modules.pop("sibling_of_m")


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    functions = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text(f"def build(): return {name!r}")
        functions.append(load("m.py:build", tmp_path / name))
    assert [function() for function in functions] == ["one", "two"]


def test_a_file_is_run_once(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def build(): ...\ndef data(): ...")
    build, data = load("m.py:build", tmp_path), load("m.py:data", tmp_path)
    assert build.__globals__ is data.__globals__


def test_modules_are_found_in_the_folder_after_the_installed_ones(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')")
    (tmp_path / "only_in_this_folder.py").write_text("def build(): return 1")
    assert load("only_in_this_folder:build", tmp_path)() == 1
    assert callable(load("json:loads", tmp_path))
    sys.modules.pop("only_in_this_folder")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("build", "--model build: does not name a callable; write path/file.py:callable or pkg.mod:callable"),
        ("no_such_pkg.mod:build", 'there is no module "no_such_pkg"'),
        ("json.no_such:build", 'there is no module "json.no_such"'),
        ("gone.py:build", "there is no file"),
        ("m.py:biuld", 'm.py has no "biuld"; did you mean "build"?'),
        ("m.py:WIDTH", "is of type int, which cannot be called"),
        ("m-x:build", '"m-x" is no module name'),
    ],
)
def test_a_wrong_spec_is_a_usage_error(tmp_path: Path, spec: str, said: str) -> None:
    (tmp_path / "m.py").write_text("WIDTH = 3\ndef build(): ...")
    with pytest.raises(UsageError) as caught:
        load(spec, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1/0", "raised ZeroDivisionError: division by zero"),
        ("import not_installed_here", "raised ModuleNotFoundError: No module named 'not_installed_here'"),
        ("import sys; sys.exit(4)", "raised SystemExit: 4"),
        ("def build(:", "raised SyntaxError"),
    ],
)
def test_code_that_fails_on_import_is_named(tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "m.py").write_text(code)
    with pytest.raises(ModelError) as caught:
        load("m.py:build", tmp_path)
    assert said in str(caught.value)
    assert not [
        name for name in sys.modules if getattr(sys.modules[name], "__file__", "") == str(tmp_path / "m.py")
    ]


def test_what_code_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with running("--data m.py:data", InputError):
        print("loading")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "loading\n")


def test_errors_of_the_project_pass_through_and_interrupts_too() -> None:
    with pytest.raises(UsageError), running("x", ModelError):
        raise UsageError("a", "b", "c")
    with pytest.raises(KeyboardInterrupt), running("x", ModelError):
        raise KeyboardInterrupt


def test_a_reason_is_one_bounded_line() -> None:
    assert reason(ValueError("a\n  b")) == "ValueError: a b"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 9999))) == 300
    assert issubclass(ModelError, NndiagError)
