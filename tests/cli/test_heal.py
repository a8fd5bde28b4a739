"""``nndiag heal`` from the command line: what it prints, and every way in which it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Cli
from tests.cli.support import FULL, network, run_process

TRAIN = ("--goal", "train", *FULL)


@pytest.fixture
def sick(work: Path) -> str:
    """The small network with a dead unit, and one that is not finite in another file."""
    state = dict(network().state_dict())
    state["0.bias"][2] = -100.0
    save_file(state, work / "sick.safetensors")
    return "sick.safetensors"


def digest(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_dead_unit_is_revived_and_the_screen_says_what_it_did(cli: Cli, work: Path, sick: str) -> None:
    ended = cli("heal", sick, *TRAIN, "--out", "new.safetensors", "--only", "ND201")
    assert ended.code == 0
    assert "1 node of 1 layer treated, and the function stays as it is." in ended.out
    assert "ND201 dead" in ended.out
    assert "treated nodes with gradient  0 of 1" in ended.out
    assert "new.safetensors is written" in ended.out
    new, old = load_file(work / "new.safetensors"), load_file(work / sick)
    assert float(new["0.bias"][2]) > -50
    assert torch.equal(new["0.weight"][3], old["0.weight"][3])


def test_the_json_on_stdout_is_the_file_beside(cli: Cli, work: Path, sick: str) -> None:
    ended = cli("heal", sick, *TRAIN, "--out", "new.safetensors", "--format", "json")
    assert ended.document() == json.loads((work / "new.safetensors.heal.json").read_text())
    assert {action["code"] for action in ended.document()["actions"]} >= {"ND201"}


def test_a_dry_run_needs_no_target_and_leaves_nothing(cli: Cli, work: Path, sick: str) -> None:
    before = digest(work)
    ended = cli("heal", sick, *TRAIN, "--dry-run")
    assert ended.code == 0
    assert "would be treated" in ended.out
    assert "nothing was written" in ended.out
    assert digest(work) == before


def test_taking_out_a_dead_unit_writes_the_sizes_that_a_factory_needs(
    cli: Cli, work: Path, sick: str
) -> None:
    ended = cli("heal", sick, "--goal", "deploy", *FULL, "--out", "new.safetensors", "--only", "ND201")
    assert ended.code == 0
    new = load_file(work / "new.safetensors")
    assert new["0.weight"].shape == (7, 4)
    assert new["2.weight"].shape == (3, 7)
    assert json.loads((work / "new.safetensors.widths.json").read_text())["0"]["out_features"] == 7
    assert "nndiag.resize(model, 'new.safetensors.widths.json')" in ended.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--out", "net.safetensors"), 2, "is the checkpoint itself"),
        (("--out", "probe.safetensors"), 2, "is there already"),
        (("--out", "nowhere/new.safetensors"), 2, "there is no folder"),
        ((), 2, "--out: it is missing"),
        (("--out", "new", "--init", "magic"), 2, "there is no such initialiser"),
        (("--out", "new", "--max-loss-increase", "-1"), 2, "is not a usable share"),
        (("--out", "new", "--threads", "0"), 2, "is too small"),
        (("--out", "new", "--level", "weights"), 2, "shows too little"),
        (("--out", "new", "--data", "none.npz"), 3, "none.npz"),
    ],
)
def test_refusals_are_one_line_and_nothing_is_left(
    cli: Cli, work: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    before = digest(work)
    assert said in cli("heal", "net.safetensors", *TRAIN, *words).failed(code)
    assert digest(work) == before


def test_the_goal_is_needed_and_the_model_too(cli: Cli) -> None:
    assert "--goal: it is missing" in cli("heal", "net.safetensors", *FULL, "--out", "new").failed(2)
    assert "--model" in cli("heal", "net.safetensors", "--goal", "train", "--out", "new").failed(2)


def test_a_report_that_is_there_already_is_not_overwritten(cli: Cli, work: Path, sick: str) -> None:
    (work / "new.safetensors.heal.json").write_text("mine")
    line = cli("heal", sick, *TRAIN, "--out", "new.safetensors").failed(2)
    assert "new.safetensors.heal.json" in line
    assert (work / "new.safetensors.heal.json").read_text() == "mine"
    assert not (work / "new.safetensors").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said(cli: Cli, work: Path, sick: str) -> None:
    (work / "locked").mkdir(mode=0o500)
    assert "cannot be written" in cli("heal", sick, *TRAIN, "--out", "locked/new.safetensors").failed(3)


def test_the_optimiser_forgets_the_unit_and_remembers_the_others(cli: Cli, work: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    probe = load_file(work / "probe.safetensors")
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(probe["x"]), probe["y"]).backward()
        optimizer.step()
    with torch.no_grad():
        model[0].bias[2] = -100.0
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 4}, work / "full.pt"
    )
    ended = cli("heal", "full.pt", *TRAIN, "--out", "new.pt", "--only", "ND201")
    assert ended.code == 0, ended.err
    new = torch.load(work / "new.pt", weights_only=True)
    assert new["epoch"] == 4
    before, after = optimizer.state_dict()["state"], new["optimizer"]["state"]
    others = [0, 1, 3, 4, 5, 6, 7]
    assert not after[0]["exp_avg"][2].any()
    assert not after[2]["exp_avg"][:, 2].any()
    assert torch.equal(after[0]["exp_avg"][others], before[0]["exp_avg"][others])
    assert torch.equal(after[2]["exp_avg"][:, others], before[2]["exp_avg"][:, others])
    again = network()
    again.load_state_dict(new["model"])
    restored = torch.optim.Adam(again.parameters(), lr=1e-3)
    restored.load_state_dict(new["optimizer"])
    torch.nn.functional.cross_entropy(again(probe["x"]), probe["y"]).backward()
    restored.step()
    assert all(p.isfinite().all() for p in again.parameters())


def test_the_program_itself_heals(work: Path, sick: str) -> None:
    ended = run_process("heal", sick, *TRAIN, "--out", "new.safetensors", cwd=work)
    assert ended.code == 0, ended.err
    assert "What it did on the probe" in ended.out
    assert (work / "new.safetensors.heal.json").exists()
