"""What is scanned and what is printed where: formats, files, selections, the exit code of the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from safetensors.torch import save_file

import nndiag
from tests.cli.conftest import Cli
from tests.cli.support import FULL, WITH_MODEL, network, samples

SCHEMA = json.loads((Path(nndiag.__file__).parent / "nndiag.schema.json").read_text())


def dead_node(work: Path, epoch: int = 10) -> None:
    """Kill node 5 of the first layer of one checkpoint of the run."""
    state = network(seed=epoch).state_dict()
    state["0.bias"][5] = -100.0
    save_file(dict(state), work / "run" / f"epoch_{epoch}.safetensors")


def paths(document: Any) -> list[str]:
    return [found["checkpoint"]["path"] for found in document["checkpoints"]]


@pytest.mark.parametrize("words", [(), WITH_MODEL, FULL[:4], FULL, (*FULL, "--all-nodes")])
def test_document_is_as_the_schema_says(cli: Cli, work: Path, words: tuple[str, ...]) -> None:
    dead_node(work)
    document = cli("scan", "run", *words, "--format", "json").document()
    jsonschema.validate(document, SCHEMA)
    assert list(document) == ["schema_version", "nndiag_version", "settings", "checkpoints"]
    found = document["checkpoints"][-1]
    assert set(found) >= {
        "checkpoint", "probe", "level", "curvature", "timing", "model", "layers", "nodes",
    }  # fmt: skip
    assert {"path", "format", "sha256", "step", "epoch", "parameters", "optimizer"} <= set(
        found["checkpoint"]
    )
    assert set(found["timing"]) == {"forward_backward_s", "capture_s", "curvature_s", "total_s"}
    assert set(found["layers"][0]) >= {
        "name", "kind", "nodes", "fan_in", "parameters", "verdicts", "measures", "findings",
    }  # fmt: skip
    for node in found["nodes"]:
        assert set(node) == {
            "layer", "index", "verdict", "steady", "curvature_kind", "measures", "findings", "action",
        }  # fmt: skip


def test_a_run_is_in_training_order(cli: Cli) -> None:
    document = cli("scan", "run", *FULL, "--format", "json").document()
    assert [found["checkpoint"]["epoch"] for found in document["checkpoints"]] == [1, 2, 10]


def test_every_and_last(cli: Cli) -> None:
    every = cli("scan", "run", "--every", "2", "--format", "json").document()
    assert paths(every) == ["run/epoch_1.safetensors", "run/epoch_10.safetensors"]
    last = cli("scan", "run", "--last", "1", "--format", "json").document()
    assert paths(last) == ["run/epoch_10.safetensors"]


def test_checkpoints_given_one_by_one(cli: Cli) -> None:
    ended = cli("scan", "net.pt", "net.safetensors", "./net.pt", *FULL, "--format", "json")
    document = ended.document()
    assert paths(document) == ["net.pt", "net.safetensors"]
    assert "more than once" in ended.err
    one, other = document["checkpoints"]
    for ignored in ("checkpoint", "timing"):
        del one[ignored], other[ignored]
    assert one == other


def test_a_directory_of_several_formats(cli: Cli, work: Path) -> None:
    (work / "mixed").mkdir()
    (work / "net.pt").rename(work / "mixed" / "step_2.pt")
    (work / "net.safetensors").rename(work / "mixed" / "step_1.safetensors")
    document = cli("scan", "mixed", *FULL, "--format", "json").document()
    assert [found["checkpoint"]["format"] for found in document["checkpoints"]] == ["safetensors", "torch"]


def test_files_beside_the_screen(cli: Cli, work: Path) -> None:
    (work / "old.json").write_text("old")
    (work / "old.json").chmod(0o600)
    (work / "link.md").symlink_to("target.md")
    ended = cli("scan", "net.safetensors", *FULL, "--output", "json=old.json", "--output", "markdown=link.md")
    assert ended.code == 0
    assert "net.safetensors" in ended.out
    jsonschema.validate(json.loads((work / "old.json").read_text()), SCHEMA)
    assert (work / "old.json").stat().st_mode & 0o777 == 0o600
    assert (work / "link.md").is_symlink()
    assert (work / "target.md").read_text().startswith("#")
    assert not [file for file in work.iterdir() if file.name.startswith(".")]


def test_output_to_a_device_leaves_the_device(cli: Cli) -> None:
    assert cli("scan", "net.safetensors", "--output", "json=/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


def test_a_file_that_cannot_be_written(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nndiag.report.files.tempfile.mkstemp", full)
    line = cli("scan", "net.safetensors", "--output", "json=report.json").failed(3)
    assert "report.json: cannot be written (No space left on device)" in line


def test_jsonl_is_a_line_a_checkpoint(cli: Cli) -> None:
    ended = cli("scan", "run", *FULL, "--format", "jsonl")
    assert [json.loads(line)["checkpoint"]["epoch"] for line in ended.out.splitlines()] == [1, 2, 10]


def test_fail_on(cli: Cli, work: Path) -> None:
    dead_node(work)
    chosen = ("scan", "run", *FULL, "--select", "ND201")
    assert cli(*chosen).code == 0
    assert cli(*chosen, "--fail-on", "error").code == 0
    ended = cli(*chosen, "--fail-on", "warning", "--format", "json")
    assert paths(ended.document(1)) == [f"run/epoch_{epoch}.safetensors" for epoch in (1, 2, 10)]


def test_select_and_ignore(cli: Cli, work: Path) -> None:
    dead_node(work)

    def codes(*words: str) -> set[str]:
        document = cli("scan", "run", *FULL, "--last", "1", "--format", "json", *words).document()
        return {
            finding["code"]
            for node in (*document["checkpoints"][0]["nodes"], *document["checkpoints"][0]["layers"])
            for finding in node["findings"]
        }

    everything = codes()
    assert "ND201" in everything
    assert codes("--select", "nd201") == {"ND201"}
    assert codes("--select", "ND2") == {code for code in everything if code.startswith("ND2")}
    assert codes("--ignore", "ND2,ND3") == {code for code in everything if code[2] not in "23"}


def test_all_nodes(cli: Cli, work: Path) -> None:
    dead_node(work)
    words = ("scan", "run", *FULL, "--last", "1", "--format", "json", "--select", "ND201")
    some = cli(*words).document()["checkpoints"][0]["nodes"]
    assert [(node["layer"], node["index"]) for node in some] == [("0", 5)]
    every = cli(*words, "--all-nodes").document()["checkpoints"][0]["nodes"]
    assert len(every) == 11
    assert every[5] == some[0]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ((), "add --model file.py:callable and --data probe.safetensors"),
        (WITH_MODEL, "add --data probe.safetensors"),
        ((*WITH_MODEL, "--data", "x.safetensors"), "add --loss cross_entropy"),
        ((*FULL, "--level", "gradients"), "leave out --level gradients"),
    ],
)
def test_the_screen_names_the_flag_that_gets_more(
    cli: Cli, work: Path, words: tuple[str, ...], hint: str
) -> None:
    save_file({"x": samples()["x"]}, work / "x.safetensors")
    assert hint in " ".join(cli("scan", "net.safetensors", *words).out.split())


def test_nothing_to_add_at_the_deepest_level(cli: Cli) -> None:
    assert " add --" not in " ".join(cli("scan", "net.safetensors", *FULL).out.split())


def test_configuration_of_a_second_directory_is_said_to_be_unread(cli: Cli, work: Path) -> None:
    (work / "other").mkdir()
    (work / "net.safetensors").rename(work / "other" / "epoch_11.safetensors")
    (work / "other" / "nndiag.toml").write_text("[probe]\nlimit = 3\n")
    assert "other/nndiag.toml is not read" in cli("scan", "run", "other").err


def test_quiet_says_nothing_on_stderr(cli: Cli) -> None:
    assert cli("scan", "net.pt", "./net.pt", *FULL[:4], "--quiet").err == ""


def test_foreign_prints_go_to_stderr(cli: Cli) -> None:
    words = ("--model", "models.py:Talking", *FULL[2:], "--format", "json")
    ended = cli("scan", "named.safetensors", *words)
    ended.document()
    assert "hello from forward" in ended.err


@pytest.mark.filterwarnings("default")
def test_warnings_are_notes(cli: Cli) -> None:
    words = ("--model", "models.py:Warning", *FULL[2:], "--format", "json")
    ended = cli("scan", "named.safetensors", *words)
    ended.document()
    assert set(ended.err.splitlines()) == {"note: UserWarning: this is old"}
