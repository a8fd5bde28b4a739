"""``nndiag compare`` as a user runs it."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import Cli
from tests.cli.support import FULL, network, run_process

ROOT = Path(__file__).parents[2] / "sample_checkpoints"


@pytest.fixture
def reports(cli: Cli, work: Path) -> list[str]:
    """Reports of the three checkpoints of the run."""
    names = []
    for epoch in (1, 2, 10):
        names.append(f"r{epoch}.json")
        file = f"run/epoch_{epoch}.safetensors"
        assert cli("scan", file, *FULL, "--quiet", "--output", f"json={names[-1]}").code == 0
    return names


def test_reports_and_the_run_say_the_same(cli: Cli, reports: list[str]) -> None:
    from_reports = cli("compare", *reports, "--format", "json").document()
    from_run = cli("compare", "run", *FULL, "--format", "json", "--quiet").document()
    assert from_reports == from_run
    assert [mark["epoch"] for mark in from_run["checkpoints"]] == [1, 2, 10]
    assert set(from_run) == {
        "schema_version", "nndiag_version", "settings", "checkpoints", "model", "layers", "nodes",
    }  # fmt: skip


def test_the_json_is_in_the_schema(cli: Cli, reports: list[str]) -> None:
    schema = json.loads(resources.files("nndiag").joinpath("nndiag.schema.json").read_text(encoding="utf-8"))
    found = cli("compare", *reports, "--format", "json", "--all-nodes").document()
    assert len(found["nodes"]) == 11
    one = json.loads(Path(reports[0]).read_text())
    for document in (found, one):
        jsonschema.validate(document, schema)
    found["layers"][0]["degenerate"][0] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema)


def test_the_screen_tells_the_story_first(cli: Cli) -> None:
    ended = cli("compare", str(ROOT / "dying_mlp"), "--quiet")
    assert ended.code == 0
    first, picture, *_ = ended.out.split("\n\n")
    assert first.startswith("✗ Layer 4: all 32 nodes are dead since epoch 9")
    assert "epoch  0  1  2" in picture
    assert "DD DD DD DD" in picture
    assert ended.out.index("What else happened") < ended.out.index("What to do") < ended.out.index("Layers  ")


def test_what_could_not_be_judged_is_not_called_well(cli: Cli) -> None:
    ended = cli("compare", str(ROOT / "two_cycle"), "--level", "weights", "--last", "2", "--quiet")
    assert ended.out.startswith("• Nothing wrong was seen, but 1 of 1 node could not be judged.")


def test_two_runs_are_compared_where_they_ended(cli: Cli, work: Path) -> None:
    other = work / "other"
    other.mkdir()
    save_file(dict(network(seed=3).state_dict()), other / "epoch_7.safetensors")
    found = cli("compare", "run", "other", *FULL, "--format", "json", "--quiet").document()
    assert [Path(mark["path"]).name for mark in found["checkpoints"]] == [
        "epoch_10.safetensors",
        "epoch_7.safetensors",
    ]
    assert set(found["layers"][0]["change"]) >= {"degenerate_fraction", "effective_rank"}


def test_a_permuted_network_is_matched(cli: Cli, work: Path) -> None:
    state = network(seed=3).state_dict()
    order = torch.arange(8).roll(3)
    state["0.bias"][2] = -100.0
    save_file(dict(state), work / "a.safetensors")
    moved = {"0.weight": state["0.weight"][order], "0.bias": state["0.bias"][order],
             "2.weight": state["2.weight"][:, order].contiguous(), "2.bias": state["2.bias"]}  # fmt: skip
    save_file(moved, work / "b.safetensors")
    words = ("compare", "a.safetensors", "b.safetensors", *FULL, "--format", "json", "--quiet", "--all-nodes")
    plain, matched = cli(*words).document(), cli(*words, "--match").document()
    assert plain["layers"][0]["transitions"] != {}
    assert matched["layers"][0]["transitions"] == {}
    rho = [node["measures"]["rho"][1] for node in matched["nodes"] if node["layer"] == "0"]
    assert rho == pytest.approx([1.0] * 8, rel=1e-5)


def test_findings_can_fail_a_build(cli: Cli) -> None:
    words = ("compare", str(ROOT / "dying_mlp"), "--quiet")
    assert cli(*words, "--fail-on", "error").code == 1
    assert cli("compare", str(ROOT / "two_cycle"), "--quiet", "--fail-on", "warning").code == 0


def test_what_cannot_be_compared(cli: Cli, reports: list[str], work: Path) -> None:
    assert "nothing to compare it with" in cli("compare", reports[0]).failed(2)
    assert "are mixed" in cli("compare", reports[0], "net.pt").failed(2)
    assert "two checkpoints" in cli("compare", *reports, "--match").failed(2)
    assert "not measured again" in cli("compare", *reports, *FULL).failed(2)
    (work / "bad.json").write_text("{")
    assert "is not JSON" in cli("compare", reports[0], "bad.json").failed(3)
    assert "no such file" in cli("compare", "gone.json", "gone.json").failed(3)
    (work / "empty.json").write_text('{"schema_version": 1, "checkpoints": []}')
    assert "holds no checkpoint" in cli("compare", "empty.json", "empty.json").failed(3)
    (work / "later.json").write_text('{"schema_version": 2, "checkpoints": []}')
    assert "schema version 2" in cli("compare", reports[0], "later.json").failed(3)
    wide = dict(network(width=5).state_dict())
    save_file(wide, work / "wide.safetensors")
    assert "compare checkpoints of one network" in cli("compare", "net.pt", "wide.safetensors").failed(3)


def test_markdown_and_files(cli: Cli, reports: list[str], work: Path) -> None:
    ended = cli(
        "compare", *reports, "--format", "markdown", "--output", "json=c.json", "--output", "rich=c.txt"
    )
    assert ended.out.startswith("# nndiag compare: ")
    assert json.loads((work / "c.json").read_text())["schema_version"] == 1
    assert "What" in (work / "c.txt").read_text() or "Nothing" in (work / "c.txt").read_text()
    assert "is one of the scan's own inputs" in cli(
        "compare", *reports, "--output", f"json={reports[0]}"
    ).failed(2)


def test_reports_are_compared_without_torch(work: Path, reports: list[str]) -> None:
    code = (
        "import sys; from nndiag.cli import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    ended = run_process("compare", *reports, cwd=work, launcher=("-c", code))
    assert (ended.code, ended.err) == (0, "False\n")


def test_the_catalogue_has_the_findings_along_runs(cli: Cli) -> None:
    listed = cli("rules").out
    assert all(f"ND70{i}" in listed for i in range(1, 9))
    assert "absorbed_share = 0.5" in cli("explain", "ND702").out
    assert "ND703" in cli("explain", "shrinking-to-zero").out


def test_thresholds_of_the_run_count(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "weight_decay_collapse", tmp_path / "decay")
    before = cli("compare", "decay", "--format", "json", "--level", "weights").document()
    with (tmp_path / "decay" / "nndiag.toml").open("a") as file:
        file.write("\n[rules.thresholds]\nshrink_ratio = 1e-9\n")
    after = cli("compare", "decay", "--format", "json", "--level", "weights").document()

    def shrinking(found: dict[str, Any]) -> int:
        return sum(f["code"] == "ND703" for node in found["nodes"] for f in node["findings"])

    assert shrinking(before) > 0
    assert shrinking(after) == 0
    assert after["settings"]["thresholds"] == {"shrink_ratio": 1e-9}


def codes_of(found: dict[str, Any]) -> set[str]:
    parts = (found["model"]["findings"], *(node["findings"] for node in found["nodes"]))
    return {finding["code"] for part in parts for finding in part}


def test_findings_are_selected_and_ignored(cli: Cli, tmp_path: Path) -> None:
    run = (
        "compare",
        str(ROOT / "weight_decay_collapse"),
        "--level",
        "weights",
        "--format",
        "json",
        "--quiet",
    )
    every = codes_of(cli(*run).document())
    assert {"ND701", "ND703"} <= every
    assert codes_of(cli(*run, "--select", "ND703").document()) == {"ND703"}
    assert codes_of(cli(*run, "--ignore", "nd703,ND702").document()) == every - {"ND702", "ND703"}
    assert "compare finds ND701 to ND708" in cli(*run, "--select", "ND2").failed(2)
    assert "no finding has this code" in cli(*run, "--ignore", "ND9").failed(2)
    shutil.copytree(ROOT / "weight_decay_collapse", tmp_path / "decay")
    with (tmp_path / "decay" / "nndiag.toml").open("a") as file:
        file.write('\n[rules]\nignore = ["ND703"]\n')
    configured = ("compare", "decay", *run[2:])
    assert codes_of(cli(*configured).document()) == every - {"ND703"}
    assert codes_of(cli(*configured, "--select", "ND7").document()) == every


def test_checkpoints_of_reports_are_chosen_as_those_of_a_run(cli: Cli, reports: list[str]) -> None:
    found = [cli("compare", *names, "--last", "2", "--format", "json").document() for names in
             (reports, ("run", *FULL, "--quiet"))]  # fmt: skip
    assert [mark["epoch"] for mark in found[0]["checkpoints"]] == [2, 10]
    assert found[0] == found[1]
    every = cli("compare", *reports, "--every", "2", "--format", "json").document()
    assert [mark["epoch"] for mark in every["checkpoints"]] == [1, 10]


@pytest.mark.parametrize(
    ("option", "value", "code", "said"),
    [("--weights-key", "gone", 2, "gone"), ("--device", "abacus", 2, "abacus"), ("--betas", "1", 2, "two numbers"),
     ("--strip-prefix", "far.", 2, "far."), ("--threads", "0", 2, "at least 1")],
)  # fmt: skip
def test_options_of_scanning_reach_the_scan(cli: Cli, option: str, value: str, code: int, said: str) -> None:
    assert said in cli("compare", "run", *FULL, "--quiet", option, value).failed(code)


def test_options_of_scanning_are_refused_for_reports(cli: Cli, reports: list[str]) -> None:
    for option, value in (("--lr", "0.1"), ("--level", "weights"), ("--model-arg", "width=3")):
        said = cli("compare", *reports, option, value).failed(2)
        assert said.startswith(f"error: {option}: reports are not measured again")
