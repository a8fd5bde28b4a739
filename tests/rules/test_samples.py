"""What is said of the sample runs against what their facts.json counted with plain torch."""

from __future__ import annotations

import functools
import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from nndiag.measures import Plan, Update, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts
from nndiag.rules.diagnose import JudgedLayer, Selection, judge
from tests.rules.diagnosing import codes, finding

ROOT = Path(__file__).parents[2] / "sample_checkpoints"
RELU_RUNS = ("healthy_mlp", "dying_mlp", "weight_decay_collapse", "small_cnn_bn")


@functools.cache
def facts(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / run / "facts.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def diagnosis(run: str, file: str, level: Level = Level.CURVATURE) -> dict[str, JudgedLayer]:
    """Return what is said of one checkpoint, by layer."""
    config = tomllib.loads((ROOT / run / "nndiag.toml").read_text(encoding="utf-8"))
    modules = []
    for kind, *arguments in config["model"]["sequential"]:
        keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        modules.append(getattr(nn, kind)(*arguments, **keywords))
    model = nn.Sequential(*modules)
    model.load_state_dict(load_file(ROOT / run / file))
    data = load_file(ROOT / run / config["probe"]["data"])
    probe = Probe((data["x"],), data["y"], named_loss(config["probe"]["loss"]))
    rule = config.get("optimizer", {})
    update = Update(
        OptimizerFacts(**{k: tuple(v) if isinstance(v, list) else v for k, v in rule.items()}), {}
    )
    measured = measure(model, probe, Plan(level), update if rule else None)
    return {one.measures.name: one for one in judge(measured, Selection())}


def files(run: str) -> list[str]:
    return [row["file"] for row in facts(run)["checkpoints"]]


@pytest.mark.parametrize("run", RELU_RUNS)
def test_as_many_units_are_dead_as_were_counted(run: str) -> None:
    for row in facts(run)["checkpoints"]:
        found = diagnosis(run, row["file"], Level.ACTIVATIONS)
        dead = {
            name: sum("ND201" in codes(found[name], node) for node in found[name].by_node)
            for name in row["dead"]
        }
        assert dead == row["dead"], row["file"]


@pytest.mark.parametrize("run", ["healthy_mlp", "small_cnn_bn"])
def test_healthy_runs_are_healthy_from_start_to_end(run: str) -> None:
    for file in files(run):
        found = diagnosis(run, file)
        assert not [f for one in found.values() for f in one.findings if f.severity != "info"], file
        graver = [
            f for one in found.values() for fs in one.by_node.values() for f in fs if f.severity == "error"
        ]
        assert graver == []
        nodes = sum(one.measures.nodes for one in found.values())
        sick = sum(word != "healthy" for one in found.values() for word in one.verdicts)
        assert sick <= 0.03 * nodes


def test_the_cnn_has_no_sick_node_at_all() -> None:
    for file in files("small_cnn_bn"):
        for one in diagnosis("small_cnn_bn", file).values():
            assert set(one.verdicts) == {"healthy"}
            assert all(f.severity == "info" for fs in one.by_node.values() for f in fs)


def test_the_dying_run_is_told_by_its_dead_layer() -> None:
    since = facts("dying_mlp")["dead_since"]["4"]
    for row in facts("dying_mlp")["checkpoints"]:
        found = diagnosis("dying_mlp", row["file"])
        gone = row["epoch"] >= since
        assert (sum(word == "plateau" for word in found["4"].verdicts) == 32) == gone
        if gone:
            assert finding(found["4"], None, "ND252").cause is None
            blamed = [f for fs in found["0"].by_node.values() for f in fs if f.code == "ND304"]
            assert blamed
            assert {f.message for f in blamed} == {
                "its output varies, yet the network's output does not depend on it: layer 4 after it is dead"
            }
            assert finding(found["0"], None, "ND252").cause == "ND250"
            assert {finding(found["6"], n, "ND203").cause for n in range(10)} == {"ND250"}


def test_weight_decay_ends_with_whole_layers_collapsed() -> None:
    last = facts("weight_decay_collapse")["checkpoints"][-1]
    found = diagnosis("weight_decay_collapse", last["file"])
    for name in ("0", "2"):
        assert found[name].counts["collapsed"] == last["below_1e-3"][name] == found[name].measures.nodes
        assert finding(found[name], None, "ND252").severity == "error"
    first = diagnosis("weight_decay_collapse", files("weight_decay_collapse")[0])
    assert not any(one.counts["collapsed"] for one in first.values())


def test_the_diverging_run_has_a_source() -> None:
    rows = facts("diverging")["checkpoints"]
    threshold = facts("diverging")["threshold"]
    for row in rows:
        for one in diagnosis("diverging", row["file"]).values():
            above = one.measures.per_node["lambda_max"] > threshold
            assert [n for n, word in enumerate(one.verdicts) if word == "source"] == above.nonzero()[
                0
            ].tolist()
    last = diagnosis("diverging", rows[-1]["file"])["2"]
    assert last.verdicts == ("source",)
    assert finding(last, 0, "ND402").severity == "error"
    assert finding(last, 0, "ND402").evidence["stability_margin"] == pytest.approx(
        rows[-1]["sharpest_node"]["lambda_max"] / threshold, rel=1e-3
    )


def test_no_single_node_of_the_run_at_the_edge_is_above_it() -> None:
    for file in files("above_stability"):
        for one in diagnosis("above_stability", file).values():
            assert "source" not in one.verdicts


def test_the_xor_collapse_is_a_dead_unit_and_the_spurious_point_is_not() -> None:
    collapse, spurious = (diagnosis("xor_relu1", file)["0"] for file in files("xor_relu1"))
    assert collapse.verdicts == ("plateau",)
    assert "ND201" in codes(collapse, 0)
    assert finding(collapse, None, "ND252").severity == "warning"  # four samples
    assert spurious.verdicts == ("healthy",)
    assert "ND201" not in codes(spurious, 0)


def test_the_xor_minima_of_abs_are_no_plateaus() -> None:
    for row in facts("xor_abs1")["checkpoints"]:
        one = diagnosis("xor_abs1", row["file"])["0"]
        assert "plateau" not in one.verdicts
        assert one.measures.per_node["lambda_max"][0] == pytest.approx(row["eigenvalues_mean"][-1], rel=1e-5)


def test_the_two_cycle_is_no_instability_of_its_linearisation() -> None:
    verdicts = Counter(w for file in files("two_cycle") for w in diagnosis("two_cycle", file)["0"].verdicts)
    assert verdicts == {"healthy": len(files("two_cycle"))}
