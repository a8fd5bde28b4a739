from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from nndiag.report import schema


def test_the_shipped_schema_is_the_one_made_from_the_records() -> None:
    shipped = resources.files("nndiag").joinpath("nndiag.schema.json").read_text(encoding="utf-8")
    assert shipped == schema.schema_text(), (
        "run: python -m nndiag.report.schema src/nndiag/nndiag.schema.json"
    )


def test_the_module_writes_the_schema(tmp_path: Path) -> None:
    target = tmp_path / "made.json"
    command = [sys.executable, "-m", "nndiag.report.schema", str(target)]
    subprocess.run(command, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert target.read_text(encoding="utf-8") == schema.schema_text()
    assert [path.name for path in tmp_path.iterdir()] == ["made.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "made.json"
    target.write_text("old", encoding="utf-8")

    def fail() -> str:
        raise OSError("no space")

    monkeypatch.setattr(schema, "schema_text", fail)
    with pytest.raises(OSError, match="no space"):
        schema.write_schema(target)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("made.json", "old")]
