"""Which action a node's findings call for, while training goes on and once it is over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nndiag.records.measured import LayerMeasures
from nndiag.records.report import Finding
from nndiag.remedies import Goal, action_for, tied
from nndiag.rules import RULES
from nndiag.rules.base import CHANNEL, ELSEWHERE, LAYER_TO_MEND

TRAIN = {
    "ND101": "none", "ND102": "reinitialise", "ND103": "lower_lr", "ND104": "reinitialise", "ND201": "reinitialise",
    "ND202": "reinitialise", "ND203": "reinitialise", "ND204": "reinitialise", "ND206": "reinitialise",
    "ND301": "none", "ND302": "angular_noise", "ND304": "reinitialise", "ND401": "raise_lr", "ND402": "lower_lr",
    "ND303": "lower_lr", "ND403": "none", "ND404": "lower_lr",
}  # fmt: skip
DEPLOY = {
    "ND101": "none", "ND102": "prune", "ND103": "none", "ND104": "merge", "ND201": "prune", "ND202": "prune",
    "ND203": "prune", "ND204": "prune", "ND206": "merge", "ND301": "none", "ND302": "none", "ND304": "prune",
    "ND303": "none", "ND401": "prune", "ND402": "none", "ND403": "none", "ND404": "none",
}  # fmt: skip
OF_NODES = {rule.code: rule for rule in RULES if rule.on == "node"}


def found(code: str, cause: str | None = None, **evidence: Any) -> Finding:
    rule = OF_NODES[code]
    return Finding(
        code=code, name=rule.name, severity=rule.severity, message="…", evidence=evidence, cause=cause
    )  # fmt: skip


def test_every_finding_of_a_node_above_a_note_has_its_actions() -> None:
    grave = {code for code, rule in OF_NODES.items() if rule.severity != "info"}
    assert grave == TRAIN.keys() == DEPLOY.keys()


@pytest.mark.parametrize("goal", ["train", "deploy"])
@pytest.mark.parametrize("code", sorted(TRAIN))
def test_one_finding(code: str, goal: Goal) -> None:
    action = action_for([found(code)], goal, is_output=False)
    assert action.kind == (TRAIN if goal == "train" else DEPLOY)[code]
    assert code in action.reason
    assert action.verified is None


@pytest.mark.parametrize("code", ["ND102", "ND201", "ND202", "ND304"])
def test_a_whole_layer_is_never_taken_out(code: str) -> None:
    action = action_for([found(code)], "deploy", is_output=False, whole_layer=True)
    assert action.kind == "reinitialise"
    assert "whole layer" in action.reason


def test_few_samples_are_a_reason_to_check_first() -> None:
    assert "only 5 samples" in action_for([found("ND201")], "deploy", is_output=False, few=5).reason
    assert "samples" not in action_for([found("ND101")], "deploy", is_output=False, few=5).reason


@pytest.mark.parametrize("goal", ["train", "deploy"])
@pytest.mark.parametrize("code", sorted(TRAIN))
def test_outputs_are_neither_taken_out_nor_started_anew(code: str, goal: Goal) -> None:
    usual = (TRAIN if goal == "train" else DEPLOY)[code]
    action = action_for([found(code)], goal, is_output=True)
    if (code, goal) == ("ND201", "train"):
        assert action.kind == "bias_warmup"
    elif usual in ("prune", "merge", "reinitialise"):
        assert action.kind == "none"
        assert "output of the network" in action.reason
    else:
        assert action.kind == usual


@pytest.mark.parametrize(
    ("codes", "decisive"),
    [
        (["ND201", "ND203", "ND204", "ND301", "ND401"], "ND201"),
        (["ND102", "ND201", "ND203"], "ND102"),
        (["ND103", "ND201"], "ND201"),
        (["ND101", "ND102", "ND201"], "ND101"),
        (["ND104", "ND206"], "ND104"),
        (["ND304", "ND301", "ND401"], "ND304"),
        (["ND103", "ND402"], "ND402"),
        (["ND204", "ND302"], "ND204"),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_most_decisive_of_several_findings_decides(
    codes: list[str], decisive: str, backwards: bool
) -> None:
    order = codes[::-1] if backwards else codes
    for goal, table in (("train", TRAIN), ("deploy", DEPLOY)):
        action = action_for([found(code) for code in order], goal, is_output=False)  # type: ignore[arg-type]
        assert action.kind == table[decisive]
        assert decisive in action.reason


@pytest.mark.parametrize("goal", ["train", "deploy"])
def test_nothing_to_do_for_notes_and_for_healthy_nodes(goal: Goal) -> None:
    for findings in ([], [found("ND205")]):
        action = action_for(findings, goal, is_output=False)
        assert (action.kind, action.reason) == ("none", "nothing is wrong with it")


ABROAD = {LAYER_TO_MEND: "4", ELSEWHERE: "layer 4 after it is dead"}


@pytest.mark.parametrize("goal", ["train", "deploy"])
def test_a_node_whose_trouble_is_another_layer_is_left_alone(goal: Goal) -> None:
    findings = [found("ND304", "ND250", **ABROAD), found("ND301", "ND304"), found("ND401", "ND304")]
    action = action_for(findings, goal, is_output=False)
    assert (action.kind, action.reason) == ("none", "layer 4 after it is dead: mend that first (ND304)")


@pytest.mark.parametrize("goal", ["train", "deploy"])
def test_but_its_own_trouble_is_mended(goal: Goal) -> None:
    table = TRAIN if goal == "train" else DEPLOY
    findings = [found("ND304", "ND250", **ABROAD), found("ND301", "ND304"), found("ND104")]
    action = action_for(findings, goal, is_output=False)
    assert action.kind == table["ND104"]
    assert "ND104" in action.reason


@pytest.mark.parametrize("goal", ["train", "deploy"])
def test_a_unit_that_switches_carries_the_function(goal: Goal) -> None:
    action = action_for([found("ND202", switches=True), found("ND401", "ND202")], goal, is_output=False)
    assert action.kind == "none"
    assert "switches" in action.reason


@pytest.mark.parametrize("goal", ["train", "deploy"])
def test_mirror_images_are_not_merged(goal: Goal) -> None:
    action = action_for([found("ND104", mirrored=True, sign=-1, duplicate_of=1)], goal, is_output=False)
    assert action.kind == "none"
    merged = action_for([found("ND104", mirrored=False, sign=-1, duplicate_of=1)], goal, is_output=False)
    assert merged.kind == (TRAIN if goal == "train" else DEPLOY)["ND104"]


TIED = "it goes only with the unit that it scales"


@pytest.mark.parametrize("goal", ["train", "deploy"])
@pytest.mark.parametrize("code", sorted(TRAIN))
def test_what_cannot_go_alone_is_not_taken_out(code: str, goal: Goal) -> None:
    usual = (TRAIN if goal == "train" else DEPLOY)[code]
    action = action_for([found(code)], goal, is_output=False, tied=TIED)
    if usual in ("prune", "merge"):
        assert action.kind == "none"
        assert action.reason.endswith(f"({code}), but {TIED}")
    else:
        assert action.kind == usual


CHANNEL_OF = {LAYER_TO_MEND: "bn", ELSEWHERE: "its channel in layer bn after it has collapsed", CHANNEL: True}


@pytest.mark.parametrize(
    ("goal", "tied", "kind", "do"),
    [
        ("train", None, "none", "mend that first"),
        ("deploy", None, "prune", "the two go together"),
        ("deploy", TIED, "none", "the two go together"),
    ],
)
def test_a_unit_goes_with_its_channel(goal: Goal, tied: str | None, kind: str, do: str) -> None:
    findings = [found("ND203", "ND102", **CHANNEL_OF), found("ND204", "ND203"), found("ND401", "ND203")]
    action = action_for(findings, goal, is_output=False, tied=tied)
    assert (action.kind, action.reason) == (kind, f"{CHANNEL_OF[ELSEWHERE]}: {do} (ND203)")


def test_a_single_weight_starts_anew_and_rows_are_told_apart() -> None:
    scale = action_for([found("ND102", single=True)], "train", is_output=False, tied=TIED)
    assert scale.kind == "reinitialise"
    assert "from one if it is a scale" in scale.reason
    row = action_for([found("ND104", rows=True)], "train", is_output=False, tied=TIED)
    assert row.kind == "reinitialise"
    assert "row" in row.reason


@pytest.mark.parametrize(
    ("layer", "alone"),
    [
        ({"kind": "Linear", "fan_in": 8}, True),
        ({"kind": "LSTM", "fan_in": 8}, True),
        ({"kind": "MultiheadAttention", "fan_in": 8, "nodes": 2, "parameters": 24 * 9}, True),  # by heads
        ({"kind": "Conv1D", "fan_in": 8, "nodes": 2, "parameters": 24 * 9}, True),
        (
            {"kind": "Linear", "fan_in": 8, "nodes": 2, "parameters": 8 * 9},
            False,
        ),  # the heads of the queries alone
        ({"kind": "LSTMCell", "fan_in": 8, "parameters": 8 * 4 * 10}, True),
        ({"kind": "Conv2d", "fan_in": 1}, True),  # one by one in depth: it has outputs
        ({"kind": "LSTM", "fan_in": 8, "name": "rnn.l0_reverse"}, False),
        ({"kind": "GRU", "fan_in": 8, "name": "l1"}, False),
        ({"kind": "MultiheadAttention", "fan_in": 8, "nodes": 24}, False),
        ({"kind": "LayerNorm", "fan_in": 1, "outputs": False}, False),
        ({"kind": "Embedding", "fan_in": 8, "outputs": False}, False),
        ({"kind": "Parameter", "fan_in": 8, "outputs": False}, False),
    ],
)
def test_which_nodes_can_go_alone(layer: dict[str, Any], alone: bool) -> None:
    fields = {"name": "0", "nodes": 8, "outputs": True, "parameters": 72} | layer
    node = {"output_std": np.ones(fields["nodes"])} if fields.pop("outputs") else {}
    one = LayerMeasures(per_node=node, **fields)
    assert (tied(one) is None) == alone
