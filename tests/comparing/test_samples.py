"""The stories of the sample runs, told against what was counted or computed without nndiag."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from nndiag.comparing.judging import compare_run
from nndiag.comparing.reading import run_of
from nndiag.config.policy import parse_policy
from nndiag.gating.checking import gate
from nndiag.pipeline import ScanSettings, scan
from nndiag.records.comparison import Comparison
from nndiag.report.compare_course import compared_course
from nndiag.report.compare_events import compared_advice, compared_events
from tests.comparing.runs import having

ROOT = Path(__file__).parents[2] / "sample_checkpoints"
RUNS = (
    "dying_mlp",
    "healthy_mlp",
    "weight_decay_collapse",
    "diverging",
    "above_stability",
    "two_cycle",
    "small_cnn_bn",
)


@functools.cache
def document(name: str) -> Any:
    return scan(ROOT / name, ScanSettings()).report.model_dump(mode="json")


def facts(name: str) -> Any:
    return json.loads((ROOT / name / "facts.json").read_text(encoding="utf-8"))


def compared(name: str, keep: slice = slice(None)) -> Comparison:
    return compare_run(run_of(document(name)["checkpoints"][keep]), "0")


def sentences(found: Comparison) -> list[str]:
    return [event.sentence for event in compared_events(found, compared_course(found))]


def test_the_dying_run_as_it_was_counted() -> None:
    found, counted = compared("dying_mlp"), facts("dying_mlp")
    for layer in found.layers[:3]:
        assert list(layer.dead) == [row["dead"][layer.name] for row in counted["checkpoints"]]
    whole = counted["dead_since"]["4"]
    story = sentences(found)
    assert f"Layer 4: all 32 nodes are dead since epoch {whole}" in story[0]
    assert {name for name, _ in having(found, "ND701")} == {"0", "2", "4"}
    last = found.layers[2].degenerate
    assert last[whole - 1] < 32 == last[whole]
    advice = compared_advice(found, compared_course(found))
    assert advice[0].startswith("Go back to epoch 4, the last before this")
    assert "a smaller learning rate than 0.180" in advice[0]


def test_shrinking_comes_before_collapse() -> None:
    collapsed = facts("weight_decay_collapse")["checkpoints"]
    before = next(i for i, row in enumerate(collapsed) if sum(row["below_1e-3"].values()))
    early = compared("weight_decay_collapse", slice(before))
    assert not any((v or {}).get("collapsed") for layer in early.layers for v in layer.verdicts)
    shrinking = set(having(early, "ND703"))
    late = document("weight_decay_collapse")["checkpoints"][-1]
    zero = {
        (n["layer"], n["index"]) for n in late["nodes"] if any(f["code"] == "ND102" for f in n["findings"])
    }
    assert len(zero) > 90
    assert zero <= shrinking


def test_a_run_above_its_stability_threshold_diverges_in_oscillation() -> None:
    found = compared("diverging")
    assert having(found, "ND705") == [("2", 0)]
    assert found.model.fit.state == "diverging"
    assert [mark.parameter_norm for mark in found.checkpoints] == pytest.approx(
        [row["parameter_norm"] for row in facts("diverging")["checkpoints"]], rel=1e-3
    )


def test_a_stable_cycle_is_called_an_oscillation() -> None:
    found = compared("two_cycle")
    assert found.model.fit.state == "oscillating"
    assert "The run oscillates" in sentences(found)[0]
    assert not found.nodes


def test_healthy_runs_have_little_to_tell() -> None:
    assert sentences(compared("small_cnn_bn"))[0].startswith("Nothing went wrong along the run")
    died = [row["dead"]["2"] for row in facts("healthy_mlp")["checkpoints"]]
    assert (died[0], died[-1]) == (4, 2)
    assert sentences(compared("healthy_mlp"))[0] == (
        "Little went wrong along the run: 2 of 202 nodes are degenerate at its end, 1 of them newly."
    )


@pytest.mark.parametrize(
    ("name", "passes"), [("healthy_mlp", True), ("small_cnn_bn", True), ("dying_mlp", False)]
)
def test_the_gate_of_the_samples(name: str, passes: bool) -> None:
    policy = parse_policy({"max_degenerate_fraction": 0.1}, "p")
    assert gate(document(name), policy).passed == passes


@pytest.mark.parametrize("name", RUNS)
def test_twice_as_many_checkpoints_change_no_finding(name: str) -> None:
    """Every second checkpoint, counted from the last, against all of them."""
    every, half = compared(name), compared(name, slice(None, None, 2))
    assert document(name)["checkpoints"][-1] is document(name)["checkpoints"][::2][-1]
    assert _findings(every) == _findings(half)


def _findings(found: Comparison) -> set[tuple[str, str, int, str]]:
    on_nodes = {(n.layer, str(n.index), 0, f"{f.code} {f.severity}") for n in found.nodes for f in n.findings}
    return on_nodes | {("", "", 0, finding.code) for finding in found.model.findings}
