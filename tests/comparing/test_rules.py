"""Each finding along a run on runs made by hand, on both sides of its threshold, with few and with many checkpoints."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nndiag.comparing.catalogue import RULES
from nndiag.rules.base import OF_RUNS
from nndiag.rules.diagnose import Selection
from nndiag.rules.thresholds import THRESHOLDS
from tests.comparing.runs import along, compared, diagnosis, having, layer, of_model

COUNTS = pytest.mark.parametrize("count", [5, 9, 17, 65])


def test_the_catalogue_is_whole() -> None:
    assert [rule.code for rule in RULES] == [f"ND70{i}" for i in range(1, 9)] == list(OF_RUNS)
    known = {threshold.name for threshold in THRESHOLDS}
    assert all(set(rule.thresholds) <= known for rule in RULES)
    assert {(rule.code, rule.severity) for rule in RULES} == {
        ("ND701", "error"), ("ND702", "error"), ("ND703", "warning"), ("ND704", "error"), ("ND705", "error"),
        ("ND706", "info"), ("ND707", "warning"), ("ND708", "info"),
    }  # fmt: skip


@COUNTS
def test_newly_degenerate(count: int) -> None:
    found = compared(*along(count, ["hhdh", "hpdh", "hpdc", "hpdc"]))
    assert having(found, "ND701") == [("0", 1), ("0", 3)]
    node = next(node for node in found.nodes if node.index == 1)
    assert node.degenerate_since == math.ceil(0.25 * (count - 1))
    assert node.verdicts[-1] == "plateau"


def test_what_the_first_level_could_not_judge_is_not_new() -> None:
    shallow = diagnosis(layer("uu"), step=0, level="weights")
    assert having(compared(shallow, diagnosis(layer("pp"), step=1)), "ND701") == []
    same = diagnosis(layer("uu"), step=0)
    assert len(having(compared(same, diagnosis(layer("pp"), step=1)), "ND701")) == 2


def test_what_does_not_hold_in_every_fold_is_no_error() -> None:
    run = along(5, ["hhh", "hdd", "hdd", "hdd"])
    run[-1]["layers"][0]["every_node"]["unsteady"] = [2]
    found = {n.index: {f.code: f for f in n.findings} for n in compared(*run).nodes}
    for code in ("ND701", "ND702"):
        assert (found[1][code].severity, found[2][code].severity) == ("error", "warning")
        assert "not in every fold" in found[2][code].message


def turning(share: float) -> np.ndarray:
    """Node 0 turns all along the run, the others stand still."""
    u = np.eye(4, 8)
    u[0, :2] = math.cos(share), math.sin(share)
    return u


@COUNTS
def test_absorbed_is_what_stays_where_it_was(count: int) -> None:
    found = compared(*along(count, ["hhhd", "ddhd", "ddhd", "dddd"], directions=turning))
    assert having(found, "ND702") == [("0", 1), ("0", 3)]
    severities = {n.index: f.severity for n in found.nodes for f in n.findings if f.code == "ND702"}
    assert severities == {1: "error", 3: "warning"}  # the run did not kill what was dead from the start


def test_without_directions_every_checkpoint_must_say_so() -> None:
    def blind(states: str, step: int) -> dict[str, object]:
        made = layer(states)
        made["every_node"]["direction"] = None
        return diagnosis(made, step=step)

    found = compared(*(blind(s, i) for i, s in enumerate(["hh", "dd", "dd", "hd", "dd"])))
    assert having(found, "ND702") == [("0", 1)]


@COUNTS
def test_shrinking(count: int) -> None:
    found = compared(*along(count, ["hhh"], norms=lambda s: [math.exp(-2 * s), math.exp(-0.5 * s), 1.0]))
    assert having(found, "ND703") == [("0", 0)]
    (finding,) = found.nodes[0].findings
    assert finding.evidence["norm_ratio"] == pytest.approx(math.exp(-1), rel=1e-5)
    assert finding.evidence["half_life"] == pytest.approx(500 * math.log(2), rel=1e-5)


def test_a_norm_that_falls_only_at_first_does_not_shrink_to_zero() -> None:
    assert not having(compared(*along(9, ["h"], norms=lambda s: 0.1 + math.exp(-9 * s))), "ND703")
    assert not having(
        compared(*along(9, ["h"], norms=lambda s: math.exp(2 * s * (1 - s) - 3 * s * (s > 0.9)))), "ND703"
    )


def flipping(share: float, count: int) -> np.ndarray:
    return np.eye(2, 8) * (-1) ** round(share * (count - 1))


@COUNTS
def test_diverging_and_oscillating_divergence(count: int) -> None:
    grown = lambda s: [math.exp(6 * s), 1.0]  # noqa: E731
    assert having(compared(*along(count, ["hh"], norms=grown)), "ND704") == [("0", 0)]
    found = compared(*along(count, ["hh"], norms=grown, directions=lambda s: flipping(s, count)))
    assert (having(found, "ND705"), having(found, "ND704")) == ([("0", 0)], [])
    thrown = compared(*along(count, ["sh"], norms=grown))
    assert (having(thrown, "ND705"), having(thrown, "ND704")) == ([("0", 0)], [])
    assert thrown.model.fit.state == "diverging"


@COUNTS
def test_growth_that_has_come_to_an_end_is_no_divergence(count: int) -> None:
    jump = compared(*along(count, ["h"], norms=lambda s: 1.0 if s < 0.6 else 9.0))
    assert not having(jump, "ND704")
    assert not having(compared(*along(count, ["h"], norms=lambda s: 1 + s)), "ND704")


@COUNTS
def test_a_frozen_bias(count: int) -> None:
    moving = lambda s: np.array([[math.cos(s), math.sin(s)]] * 3)  # noqa: E731
    found = compared(
        *along(count, ["hhd"], biases=lambda s: [0.5, 0.5 + s, 0.5], directions=moving, fan_in=lambda s: 2)
    )
    assert having(found, "ND706") == [("0", 0)]
    assert not having(compared(*along(count, ["h"], biases=lambda s: [0.5])), "ND706")


@COUNTS
def test_recovered(count: int) -> None:
    found = compared(*along(count, ["hhd", "hdd", "hdh", "hdh", "hhh"]))
    assert having(found, "ND708") == [("0", 1), ("0", 2)]
    assert all(n.recovered_at is not None and n.degenerate_since is None for n in found.nodes)


SETTLED = lambda s: 0.1 + math.exp(-40 * s)  # noqa: E731


@COUNTS
def test_a_norm_that_grows_as_a_logarithm_at_settled_loss(count: int) -> None:
    growing = compared(*along(count, ["h"], norms=lambda s: 1 + 0.2 * math.log(1 + 50 * s), loss=SETTLED))
    assert (of_model(growing), growing.model.fit.state) == (["ND707"], "norm-growing")
    assert growing.model.fit.growth_per_doubling == pytest.approx(0.2 * math.log(2), rel=0.1)
    resting = compared(*along(count, ["h"], norms=lambda s: 2 - math.exp(-20 * s), loss=SETTLED))
    assert (of_model(resting), resting.model.fit.state) == ([], "converged")
    falling = compared(
        *along(count, ["h"], norms=lambda s: 1 + 0.2 * math.log(1 + 50 * s), loss=lambda s: 1 - s)
    )
    assert (of_model(falling), falling.model.fit.state) == ([], "moving")


def test_a_stable_two_cycle_is_an_oscillation() -> None:
    found = compared(*along(17, ["hh"], directions=lambda s: flipping(s, 17), loss=lambda s: 1.2))
    assert found.model.fit.state == "oscillating"
    assert not having(found, "ND705")
    assert compared(*along(17, ["hh"], loss=lambda s: 1.2)).model.fit.state == "converged"


def test_a_threshold_can_be_changed() -> None:
    run = along(9, ["h"], norms=lambda s: math.exp(-0.5 * s))
    assert having(compared(*run, selection=Selection(thresholds={"shrink_ratio": 0.8})), "ND703")


def test_two_checkpoints_have_no_trend() -> None:
    first, last = diagnosis(layer("hh", norms=9.0), step=0), diagnosis(layer("hd", norms=0.1), step=9)
    assert {f.code for n in compared(first, last).nodes for f in n.findings} == {"ND701"}
