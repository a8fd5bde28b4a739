"""``--memory-budget`` and ``--plan`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.support import FULL, WITH_MODEL


def numbers(document: dict[str, object]) -> object:
    (checkpoint,) = document["checkpoints"]  # type: ignore[misc]
    return [(node["layer"], node["index"], node["verdict"]) for node in checkpoint["nodes"]]


def least(cli: Cli) -> int:
    plan = json.loads(cli("scan", "net.safetensors", *FULL, "--plan", "--format", "json").out)
    return int(plan["least_bytes"])


def test_a_plan_for_people(cli: Cli) -> None:
    ended = cli("scan", "net.safetensors", *FULL, "--plan", "--memory-budget", "1GiB")
    assert ended.code == 0
    for words in (
        "curvature on 10 samples",
        "1 replay of the probe",
        "of a budget of 1GiB",
        "Time      about",
        "0–7",
    ):
        assert words in ended.out


def test_a_plan_as_json(cli: Cli) -> None:
    document = cli("scan", "run", *FULL, "--plan", "--format", "json", "--memory-budget", "100MB").document()
    assert (document["level"], document["checkpoints"], document["samples"]) == ("curvature", 3, 10)
    assert document["budget_bytes"] == 100_000_000
    assert 0 < document["least_bytes"] <= document["wanted_bytes"] == document["peak_bytes"]
    assert document["replays"] == 1
    assert document["backward_passes"] > 0
    assert document["seconds"] > 0
    (only,) = document["rounds"]
    assert [(part["layer"], part["start"], part["stop"]) for part in only["parts"]] == [
        ("0", 0, 8),
        ("2", 0, 3),
    ]
    assert {part["kept"] for part in only["parts"]} == {"inputs and weights"}


def test_a_plan_of_another_level(cli: Cli) -> None:
    words = ("--plan", "--format", "json", "--level", "activations")
    document = cli("scan", "net.safetensors", *FULL, *words).document()
    assert (document["level"], document["backward_passes"]) == ("activations", 0)


def test_a_small_budget_changes_no_finding(cli: Cli) -> None:
    words = ("scan", "net.safetensors", *FULL, "--format", "json", "--all-nodes")
    tight = cli(*words, "--memory-budget", str(least(cli)))
    assert numbers(tight.document()) == numbers(cli(*words).document())


def test_a_budget_that_is_too_small(cli: Cli) -> None:
    line = cli("scan", "net.safetensors", *FULL, "--memory-budget", str(least(cli) - 1)).failed(2)
    assert line.startswith("error: --memory-budget ")
    amount = line.rpartition(" ")[2]
    assert cli("scan", "net.safetensors", *FULL, "--memory-budget", amount).code == 0


@pytest.mark.parametrize("given", ["lots", "4XB", "-1GiB", "0"])
def test_nonsense_is_refused(cli: Cli, given: str) -> None:
    line = cli("scan", "net.safetensors", *FULL, f"--memory-budget={given}").failed(2)
    assert f"--memory-budget {given}" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "add --model"),
        (WITH_MODEL, "add --data"),
        ((*FULL, "--level", "weights"), "--level"),
        ((*FULL, "--format", "markdown"), "--format rich or json"),
        ((*FULL, "--output", "json=plan.json"), "no --output"),
    ],
)
def test_what_cannot_be_planned(cli: Cli, work: Path, words: tuple[str, ...], said: str) -> None:
    assert said in cli("scan", "net.safetensors", *words, "--plan").failed(2)
    assert not (work / "plan.json").exists()


def test_out_of_memory_names_the_options(cli: Cli) -> None:
    words = ("--model", "models.py:Greedy", "--data", "probe.safetensors", "--loss", "cross_entropy")
    line = cli("scan", "named.safetensors", *words).failed(3)
    assert "out of memory" in line
    assert "--memory-budget" in line
    assert "--batch-size" in line
