"""From the record of a scan to treatments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nndiag.records.report import (
    CheckpointFacts,
    Diagnosis,
    Finding,
    LayerDiagnosis,
    ModelDiagnosis,
    NodeDiagnosis,
    Timing,
)
from nndiag.remedies import Goal, action_for, plan
from nndiag.remedies.rates import snippet, suggest
from nndiag.rules import RULES
from nndiag.rules.base import ELSEWHERE

OF = {rule.code: rule for rule in RULES}


def found(code: str, cause: str | None = None, **evidence: Any) -> Finding:
    rule = OF[code]
    return Finding(
        code=code, name=rule.name, severity=rule.severity, message="…", evidence=evidence, cause=cause
    )


def node(layer: str, index: int, goal: Goal, *findings: Finding, **measures: float) -> NodeDiagnosis:
    return NodeDiagnosis(
        layer=layer, index=index, verdict="plateau", measures=measures, findings=findings,
        action=action_for(findings, goal, is_output=layer == "head"),
    )  # fmt: skip


def layer(name: str, *findings: Finding, **measures: float) -> LayerDiagnosis:
    return LayerDiagnosis(
        name=name,
        kind="Linear",
        nodes=8,
        fan_in=4,
        parameters=40,
        verdicts={},
        measures=measures,
        findings=findings,
    )


def diagnosis(layers: list[LayerDiagnosis], nodes: list[NodeDiagnosis], **optimizer: object) -> Diagnosis:
    return Diagnosis(
        checkpoint=CheckpointFacts(path="x", format="torch", sha256="", parameters=1, optimizer=optimizer or None),
        level="curvature", timing=Timing(forward_backward_s=None, capture_s=None, curvature_s=None, total_s=0.0),
        model=ModelDiagnosis(), layers=tuple(layers), nodes=tuple(nodes),
    )  # fmt: skip


LAYERS = [layer("a.0", found("ND250", dead_data_fraction=0.5)), layer("b"), layer("head")]


def nodes(goal: Goal) -> list[NodeDiagnosis]:
    return [
        node("b", 1, goal, found("ND204"), found("ND401")),
        node("a.0", 3, goal, found("ND201"), found("ND204", "ND201")),
        node("a.0", 5, goal, found("ND104", duplicate_of=2)),
        node("b", 2, goal, found("ND301", "ND252", **{ELSEWHERE: "layer head after it is dead"})),
        node("b", 3, goal, found("ND101")),
        node("head", 0, goal, found("ND102")),
        node("b", 4, goal, found("ND302")),
        node("b", 6, goal, found("ND402")),
        node("b", 7, goal, found("ND103")),
    ]


def test_training_starts_nodes_anew_and_raises_the_bias_of_layers() -> None:
    treatments = plan(diagnosis(LAYERS, nodes("train")), "train")
    assert [(t.layer, t.index, t.code, t.kind, t.twin) for t in treatments] == [
        ("a.0", None, "ND250", "bias_warmup", None),
        ("a.0", 3, "ND201", "reinitialise", None),
        ("a.0", 5, "ND104", "reinitialise", 2),
        ("b", 1, "ND204", "reinitialise", None),
        ("b", 3, "ND101", "reinitialise", None),
        ("b", 4, "ND302", "angular_noise", None),
        ("b", 6, "ND402", "lower_lr", None),
        ("b", 7, "ND103", "reinitialise", None),
    ]


def test_deployment_takes_out_and_merges() -> None:
    treatments = plan(diagnosis(LAYERS, nodes("deploy")), "deploy")
    assert [(t.layer, t.index, t.kind) for t in treatments] == [
        ("a.0", 3, "prune"), ("a.0", 5, "merge"), ("b", 1, "prune"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("only", "layers", "wanted"),
    [
        (("ND201",), (), {("a.0", 3)}),
        (("ND2",), (), {("a.0", None), ("a.0", 3), ("b", 1)}),
        ((), ("b",), {("b", 1), ("b", 3), ("b", 4), ("b", 6), ("b", 7)}),
        ((), ("a.*", "head"), {("a.0", None), ("a.0", 3), ("a.0", 5)}),
        (("ND1",), ("a*",), {("a.0", 5)}),
    ],
)
def test_codes_and_layers_narrow_it_down(
    only: tuple[str, ...], layers: tuple[str, ...], wanted: set[object]
) -> None:
    treatments = plan(diagnosis(LAYERS, nodes("train")), "train", only, layers)
    assert {(t.layer, t.index) for t in treatments} == wanted


def test_the_largest_stable_rate_is_stated_and_half_of_it_suggested() -> None:
    several = [
        node("b", i, "train", found("ND402"), stability_margin=margin) for i, margin in enumerate((1.5, 4.0))
    ]
    seen = diagnosis([layer("b", stability_margin_max=4.0)], several, name="adam", lr=0.1, horizon=100.0)
    (one,) = suggest(seen, plan(seen, "train"))
    assert (one.kind, one.nodes, one.lr) == ("lower_lr", (0, 1), pytest.approx(0.0125))
    assert one.largest_stable_lr == pytest.approx(0.025)


def test_a_plateau_is_given_the_rate_at_which_it_relaxes_but_a_stable_one() -> None:
    flat = [node("b", 0, "train", found("ND401"), relaxation_steps=400.0)]
    for margin, wanted in ((0.01, 0.4), (0.25, 0.2)):
        seen = diagnosis([layer("b", stability_margin_max=margin)], flat, name="sgd", lr=0.1, horizon=100.0)
        (one,) = suggest(seen, plan(seen, "train"))
        assert one.lr == pytest.approx(wanted)


class Scaled(torch.nn.Module):
    """Layers, and a parameter of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.scale = torch.nn.Parameter(torch.ones(8))
        self.last = torch.nn.Linear(8, 2)


@pytest.mark.parametrize(
    "facts",
    [
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.001},
        {"name": "adam", "betas": (0.5, 0.9), "eps": 1e-6},
        {"name": "adamw", "betas": [0.5, 0.9], "weight_decay": 0.0},
    ],
)
def test_the_snippet_is_python_that_gives_each_layer_its_rate_and_changes_nothing_else(
    facts: dict[str, Any],
) -> None:
    facts["lr"] = 0.1
    several = [node(name, 0, "train", found("ND402"), stability_margin=2.0) for name in ("first", "scale")]
    layers = [layer(name, stability_margin_max=margin) for name, margin in (("first", 2.0), ("scale", 4.0))]
    seen = diagnosis(layers, several, **facts)
    text = snippet(suggest(seen, plan(seen, "train")), facts)
    assert text is not None
    assert max(map(len, text.splitlines())) <= 74  # a terminal of 80 columns breaks no line of it
    model = Scaled()
    known: dict[str, Any] = {"torch": torch, "model": model}
    exec(text, known)
    optimizer = known["optimizer"]
    assert type(optimizer).__name__.lower() == facts["name"]
    groups = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {
        "first.weight": 0.025,
        "first.bias": 0.025,
        "scale": 0.0125,
        "last.weight": 0.1,
        "last.bias": 0.1,
    }
    assert {name: groups[id(p)] for name, p in model.named_parameters()} == rates
    kept = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    assert all(optimizer.defaults[key] == value for key, value in kept.items() if key != "name")


def test_of_an_optimiser_that_is_not_known_only_the_groups_are_made() -> None:
    seen = diagnosis([layer("0")], [node("0", 0, "train", found("ND303"))], lr=0.1)
    text = snippet(suggest(seen, plan(seen, "train")), {"lr": 0.1})
    assert text is not None
    assert "torch.optim" not in text
    compile(text, "snippet", "exec")


def test_without_a_rate_there_is_no_snippet() -> None:
    seen = diagnosis([layer("b")], [node("b", 0, "train", found("ND402"))])
    (one,) = suggest(seen, plan(seen, "train"))
    assert one.lr is None
    assert snippet([one], None) is None


@pytest.mark.parametrize(
    ("kind", "tried"), [("LSTM", True), ("MultiheadAttention", True), ("Embedding", False)]
)
def test_what_shapes_tie_to_others_is_tried_in_a_finished_network(kind: str, tried: bool) -> None:
    findings = (found("ND304"),)
    one = NodeDiagnosis(
        layer="a", index=3, verdict="plateau", measures={}, findings=findings,
        action=action_for(findings, "deploy", is_output=False, tied="it goes only with others"),
    )  # fmt: skip
    assert one.action.kind == "none"
    layers = [layer("a").model_copy(update={"kind": kind})]
    treatments = plan(diagnosis(layers, [one]), "deploy")
    assert [(t.kind, t.detail) for t in treatments] == [("prune", "nothing listens to it")] * tried
    assert not plan(diagnosis(layers, [one]), "train")
    output = [layers[0].model_copy(update={"is_output": True})]
    assert not plan(diagnosis(output, [one]), "deploy")


def test_rates_of_several_recurrent_layers_reach_their_parameters() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"rnn": torch.nn.LSTM(3, 4, 2, bidirectional=True), "l1": torch.nn.Linear(8, 2)}
    )
    layers = [layer(name, stability_margin_max=4.0) for name in ("rnn.l0", "rnn.l1_reverse", "l1")]
    nodes = [node(one.name, 0, "train", found("ND402"), stability_margin=4.0) for one in layers]
    facts = diagnosis(layers, nodes, name="sgd", lr=0.1)
    code = snippet(suggest(facts, plan(facts, "train")), facts.checkpoint.optimizer)
    assert code is not None
    space: dict[str, Any] = {"model": model, "torch": torch}
    exec(code, space)
    names = {id(p): name for name, p in model.named_parameters()}
    *groups, rest = space["optimizer"].param_groups
    assert [sorted(names[id(p)] for p in group["params"]) for group in groups] == [
        ["rnn.bias_hh_l0", "rnn.bias_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l0"],
        [f"rnn.{part}_l1_reverse" for part in ("bias_hh", "bias_ih", "weight_hh", "weight_ih")],
        ["l1.bias", "l1.weight"],
    ]
    assert len(rest["params"]) == 8
