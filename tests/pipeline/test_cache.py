"""What was measured is not measured again, whatever happened meanwhile; and never taken for what it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.errors import UsageError
from nndiag.pipeline import ScanSettings, scan
from nndiag.pipeline.job import Job
from nndiag.report import render_json

TOML = """
[model]
sequential = [["Linear", 4, 6], ["ReLU"], ["Linear", 6, 3]]
[probe]
data = "probe.safetensors"
loss = "cross_entropy"
[optimizer]
name = "sgd"
lr = 0.1
"""


def write_run(folder: Path, count: int) -> Path:
    """Write a run of small networks, a step each."""
    run = folder / "run"
    run.mkdir()
    (run / "nndiag.toml").write_text(TOML)
    torch.manual_seed(0)
    save_file({"x": torch.randn(20, 4), "y": torch.randint(0, 3, (20,))}, run / "probe.safetensors")
    for step in range(count):
        add(run, step)
    return run


def add(run: Path, step: int, seed: int | None = None) -> None:
    torch.manual_seed(step if seed is None else seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    save_file(dict(net.state_dict()), run / f"step_{step:03}.safetensors")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the checkpoints that were measured."""
    names: list[str] = []
    original = Job._measured

    def noted(self, index, model, update):  # type: ignore[no-untyped-def]
        names.append(self.inputs.files[index].name)
        return original(self, index, model, update)

    monkeypatch.setattr(Job, "_measured", noted)
    return names


def told(text: str) -> str:
    """Return a report without its times."""
    document = json.loads(text)
    for checkpoint in document["checkpoints"]:
        del checkpoint["timing"]
    return json.dumps(document)


def scanned(run: Path, cache: Path | None, **more: object) -> str:
    settings = ScanSettings(cache=None if cache is None else str(cache), **more)  # type: ignore[arg-type]
    return told(render_json(scan(run, settings).report))


def test_a_growing_run_measures_what_is_new(tmp_path: Path, measured: list[str]) -> None:
    run, cache = write_run(tmp_path, 3), tmp_path / "cache"
    first = scanned(run, cache)
    assert (len(measured), scanned(run, cache), len(measured)) == (3, first, 3)
    add(run, 3)
    longer = scanned(run, cache)
    assert measured[3:] == ["step_003.safetensors"]
    assert longer == scanned(run, None)


def test_whatever_changes_a_diagnosis_is_measured_anew(tmp_path: Path, measured: list[str]) -> None:
    run, cache = write_run(tmp_path, 2), tmp_path / "cache"
    scanned(run, cache)
    for change in (
        lambda: add(run, 1, seed=9),
        lambda: (run / "nndiag.toml").write_text(TOML.replace("0.1", "0.2")),
        lambda: (run / "nndiag.toml").write_text(TOML + "[rules.thresholds]\ndormancy = 0.5\n"),
        lambda: (run / "nndiag.toml").write_text(TOML.replace('["ReLU"]', '["Tanh"]')),
        lambda: save_file({"x": torch.ones(5, 4), "y": torch.zeros(5).long()}, run / "probe.safetensors"),
    ):
        change()
        measured.clear()
        found = scanned(run, cache)
        assert measured
        assert found == scanned(run, None)
    measured.clear()
    scanned(run, cache, folds=2)
    scanned(run, cache, seed=4)
    scanned(run, cache, all_nodes=True)
    assert len(measured) == 6


def test_code_of_the_model_counts(tmp_path: Path, measured: list[str]) -> None:
    run, cache = write_run(tmp_path, 2), tmp_path / "cache"
    code = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))\n"
    (tmp_path / "m.py").write_text(code)
    for number, text in ((2, code), (2, code), (4, f"{code}# changed\n")):
        (tmp_path / "m.py").write_text(text)
        scanned(run, cache, model=f"{tmp_path / 'm.py'}:build")
        assert len(measured) == number


def test_damaged_entries_are_rebuilt(tmp_path: Path, measured: list[str]) -> None:
    run, cache = write_run(tmp_path, 4), tmp_path / "cache"
    first = scanned(run, cache)
    files = sorted(cache.glob("*/*.json"))
    assert len(files) == 4
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    files[1].write_bytes(b"\xff\x00")
    files[2].write_text(files[2].read_text().replace('\\"nodes\\": 6', '\\"nodes\\": 7'))
    files[3].unlink()
    measured.clear()
    assert scanned(run, cache) == first
    assert len(measured) == 4
    assert files[0].read_bytes() != b""
    measured.clear()
    assert scanned(run, cache) == first
    assert not measured


def test_two_scans_at_once(tmp_path: Path) -> None:
    run, cache = write_run(tmp_path, 6), tmp_path / "cache"
    words = [
        sys.executable,
        "-m",
        "nndiag",
        "scan",
        str(run),
        "--format",
        "json",
        "--quiet",
        "--cache",
        str(cache),
    ]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [told(one.communicate(timeout=900)[0]) for one in both] == [scanned(run, None)] * 2
    assert list(cache.glob("*/.*")) == []
    assert len(list(cache.glob("*/*.json"))) == 6


def test_notes_are_said_again(tmp_path: Path) -> None:
    run, cache = write_run(tmp_path, 2), tmp_path / "cache"
    broken = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).state_dict()
    broken["0.weight"][0, 0] = float("nan")
    save_file(dict(broken), run / "step_001.safetensors")

    class Heard:
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, sentence: str) -> None:
            self.notes.append(sentence)

        def progress(self, what: str, share: float) -> None:
            pass

    said = []
    for _ in range(2):
        heard = Heard()
        scan(run, ScanSettings(cache=str(cache)), heard)
        said.append(heard.notes)
    assert said[0] == said[1]
    assert any("not finite" in note for note in said[0])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        scanned(run, tmp_path / "file")


def test_killed_at_twenty_moments_it_ends_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path, 20)
    output = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.killing", str(run), str(tmp_path / "cache"), str(output)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1800, check=True,
    )  # fmt: skip
    rounds = json.loads(done.stdout)
    killed = [one for one in rounds if one["status"] == 9]
    assert len(killed) >= 5  # a child that is done before its moment comes is none
    assert rounds[-1]["status"] == 0
    assert any(one["measured"] for one in killed)
    for one in rounds:
        assert not set(one["kept"]) & set(one["measured"])
    assert told(output.read_text()) == scanned(run, None)
