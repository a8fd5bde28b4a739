"""Matching a saved optimiser with a model: what is matched, and what is declined aloud."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nndiag.model.fit import Fit, fit
from nndiag.model.optimizer import OptimizerState, match_optimizer
from nndiag.model.sequential import build_sequential


@dataclass(frozen=True)
class Place:
    key: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Saved:
    key: str
    groups: tuple[Mapping[str, object], ...]
    state: Mapping[int | str, Mapping[str, object]]


def net() -> nn.Sequential:
    return build_sequential([["Linear", 4, 3], ["ReLU"], ["Linear", 3, 2]])


def fitted(model: nn.Module) -> Fit:
    return fit(model, [Place("", model.state_dict())])


def stepped(optimizer: torch.optim.Optimizer, *models: nn.Module, steps: int = 2) -> Saved:
    """Train for a few steps and save."""
    for _ in range(steps):
        optimizer.zero_grad()
        for model in models:
            model(torch.ones(5, 4)).square().sum().backward()
        optimizer.step()
    content: dict[str, Any] = optimizer.state_dict()
    return Saved("optimizer", tuple(content["param_groups"]), content["state"])


def matched(model: nn.Module, saved: Saved, found: Fit | None = None) -> tuple[OptimizerState, str]:
    state, note = match_optimizer(model, found or fitted(model), [saved])
    assert state is not None
    return state, note


def test_adam_is_matched_by_position() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.8, 0.99), eps=1e-6)
    state, note = matched(model, stepped(optimizer, model))
    assert note == ""
    facts = state.facts
    assert (facts.name, facts.lr, facts.betas, facts.eps) == ("adam", 3e-3, (0.8, 0.99), 1e-6)
    assert (facts.weight_decay, facts.momentum, facts.source, facts.horizon) == (
        0.0,
        None,
        "checkpoint",
        None,
    )
    assert (state.step, state.eps) == (2, 1e-6)
    assert list(state.second_moments) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name, parameter in model.named_parameters():
        assert torch.equal(state.second_moments[name], optimizer.state[parameter]["exp_avg_sq"])


def test_amsgrad_divides_by_the_maximum() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    state, _ = matched(model, stepped(optimizer, model))
    weight = model.get_parameter("0.weight")
    assert torch.equal(state.second_moments["0.weight"], optimizer.state[weight]["max_exp_avg_sq"])


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ({"weight_decay": 0.01}, "adamw"),
        ({"weight_decay": 0}, "adam"),
        ({"weight_decay": 0.01, "decoupled_weight_decay": False}, "adam"),
        ({"weight_decay": 0, "decoupled_weight_decay": True}, "adamw"),
    ],
)
def test_adamw_is_told_from_adam(group: dict[str, object], name: str) -> None:
    model = nn.Linear(4, 3, bias=False)
    saved = Saved("", ({"params": [0], **group},), {0: {"step": 1, "exp_avg_sq": torch.ones(3, 4)}})
    assert matched(model, saved)[0].facts.name == name


def test_sgd_is_known_with_and_without_state() -> None:
    model = net()
    plain = stepped(torch.optim.SGD(model.parameters(), lr=0.1), model)
    state, note = matched(model, plain)
    assert (state.facts.name, state.facts.lr, state.facts.momentum, state.step, note) == (
        "sgd",
        0.1,
        0.0,
        None,
        "",
    )
    assert dict(state.second_moments) == {}
    heavy = stepped(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), model)
    facts = matched(model, heavy)[0].facts
    assert (facts.name, facts.momentum, facts.weight_decay) == ("sgd", 0.9, 1e-4)


@pytest.mark.parametrize(
    "rule", ["RMSprop", "Adagrad", "Adamax", "Adadelta", "ASGD", "Rprop", "NAdam", "RAdam"]
)
def test_another_rule_has_no_threshold_here(rule: str) -> None:
    model = net()
    optimizer = getattr(torch.optim, rule)(model.parameters(), lr=0.1)
    state, note = matched(model, stepped(optimizer, model))
    assert (state.facts.name, state.facts.lr, state.facts.stability_threshold) == (rule.lower(), 0.1, None)
    assert (
        note
        == f"optimiser: it is neither SGD nor Adam ({rule.lower()}), and no stability margin is known of it"
    )


@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_a_rule_that_ascends_has_no_threshold_here(rule: str) -> None:
    model = net()
    optimizer = getattr(torch.optim, rule)(model.parameters(), lr=0.1, maximize=True)
    state, note = matched(model, stepped(optimizer, model))
    assert state.facts.stability_threshold is None
    assert "(ascent)" in note


def test_parameters_without_second_moments_are_said() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model[2].weight.requires_grad_(False)
    _, note = matched(model, stepped(optimizer, model))
    assert note == "optimiser: it has no second moments of 2.weight: their stability margins are left out"


def test_every_parameter_has_the_facts_of_its_group_and_its_own_steps() -> None:
    model = net()
    groups = [
        {"params": list(model[0].parameters()), "lr": 1.0, "betas": (0.5, 0.9)},
        {"params": list(model[2].parameters()), "lr": 2.0},
    ]
    optimizer = torch.optim.Adam(groups)
    model[0].weight.requires_grad_(False)
    stepped(optimizer, model)
    model[0].weight.requires_grad_(True)
    state, _ = matched(model, stepped(optimizer, model))
    assert {name: facts.lr for name, facts in state.rules.items()} == {
        "0.weight": 1.0, "0.bias": 1.0, "2.weight": 2.0, "2.bias": 2.0,
    }  # fmt: skip
    assert state.rules["0.bias"].betas == (0.5, 0.9)
    assert {facts.name for facts in state.rules.values()} == {"adam"}
    assert state.steps["0.weight"] < state.steps["0.bias"] == state.steps["2.weight"] == state.step


def test_groups_that_split_matrices_from_vectors_are_matched() -> None:
    model = net()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    state, note = matched(model, stepped(optimizer, model))
    for name, parameter in model.named_parameters():
        assert torch.equal(state.second_moments[name], optimizer.state[parameter]["exp_avg_sq"])
    assert (state.facts.name, state.facts.lr, state.facts.weight_decay) == ("adamw", 1e-3, None)
    assert note == "optimiser: its parameter groups differ in weight_decay: each parameter has its own"


def test_a_learning_rate_per_group_is_absent() -> None:
    model = net()
    groups = [
        {"params": list(model[0].parameters()), "lr": 1.0},
        {"params": list(model[2].parameters()), "lr": 2.0},
    ]
    state, note = matched(model, stepped(torch.optim.SGD(groups), model))
    assert state.facts.lr is None
    assert note == "optimiser: its parameter groups differ in lr: each parameter has its own"


def test_an_optimiser_of_two_networks_follows_the_file() -> None:
    online, target = net(), net()
    optimizer = torch.optim.Adam([*online.parameters(), *target.parameters()], lr=2e-3)
    saved = stepped(optimizer, online)
    held = {
        f"{key}.{name}": value for key in ("online", "target") for name, value in online.state_dict().items()
    }
    state, note = matched(online, saved, fit(online, [Place("", held)], strip_prefix="online"))
    assert len(state.second_moments) == 4
    assert (
        note == "optimiser: it indexes 8 parameters and the model has 4; matched by their order in the file"
    )
    state, note = matched(target, saved, fit(target, [Place("", held)], strip_prefix="target"))
    assert dict(state.second_moments) == {}
    assert state.facts.lr == 2e-3
    assert note.endswith("its state belongs to other entries of the file and is left out")


def test_state_of_some_is_matched_by_its_shapes_or_not_at_all() -> None:
    model, other = net(), nn.Linear(7, 7)
    optimizer = torch.optim.Adam([*other.parameters(), *model.parameters()])
    saved = stepped(optimizer, model)
    state, note = matched(model, saved)
    assert len(state.second_moments) == 4
    assert note == (
        "optimiser: it indexes 6 parameters and the model has 4; "
        "matched by the shapes of the 4 that have state"
    )
    short = replace(saved, state={key: value for key, value in saved.state.items() if key != 5})
    state, note = matched(model, short)
    assert dict(state.second_moments) == {}
    assert note == "optimiser: it indexes 6 parameters and the model has 4; its moments are left out"


def test_shapes_that_do_not_fit_are_declined() -> None:
    model = net()
    optimizer = torch.optim.Adam(list(model.parameters())[::-1], lr=0.5)
    state, note = matched(model, stepped(optimizer, model))
    assert dict(state.second_moments) == {}
    assert (state.facts.name, state.facts.lr, state.step) == ("adam", 0.5, 2)
    assert (
        note
        == "optimiser: the shapes of its state do not fit the model in their order; its moments are left out"
    )


def test_frozen_parameters_have_no_moments() -> None:
    model = net()
    model[0].requires_grad_(False)
    everything = stepped(torch.optim.Adam(model.parameters()), model)
    assert list(matched(model, everything)[0].second_moments) == ["2.weight", "2.bias"]
    trained = stepped(torch.optim.Adam(p for p in model.parameters() if p.requires_grad), model)
    assert list(matched(model, trained)[0].second_moments) == ["2.weight", "2.bias"]


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_are_believed_over_order(prefix: str) -> None:
    model = net()
    by_position = stepped(torch.optim.Adam(model.parameters()), model)
    names = [prefix + name for name, _ in model.named_parameters()][::-1]
    state = {name: by_position.state[3 - place] for place, name in enumerate(names)}
    saved = Saved("optim", ({**by_position.groups[0], "params": names},), state)
    found = fit(model, [Place("", {f"model.{name}": value for name, value in model.state_dict().items()})])
    moments = matched(model, saved, found)[0].second_moments
    assert {name: value.shape for name, value in moments.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def test_names_of_numbered_parameters_are_used() -> None:
    model = net()
    optimizer = torch.optim.Adam(list(model.named_parameters())[::-1])
    saved = stepped(optimizer, model)
    assert "param_names" in saved.groups[0]
    moments = matched(model, saved)[0].second_moments
    assert torch.equal(moments["2.bias"], optimizer.state[model.get_parameter("2.bias")]["exp_avg_sq"])


def test_names_that_fit_nothing_are_declined() -> None:
    saved = Saved("optim", ({"params": ["a"], "lr": 0.1},), {"a": {"exp_avg_sq": torch.ones(1)}})
    state, note = matched(net(), saved)
    assert dict(state.second_moments) == {}
    assert "its names or shapes do not fit the model" in note


def test_one_of_several_optimisers_is_taken_only_if_it_alone_fits() -> None:
    model, other = net(), nn.Linear(4, 9)
    mine = stepped(torch.optim.Adam(model.parameters(), lr=0.1), model)
    theirs = stepped(torch.optim.Adam(other.parameters(), lr=0.2), other)
    state, note = match_optimizer(model, fitted(model), [theirs, mine])
    assert state is not None
    assert (state.facts.lr, note) == (0.1, "")
    state, note = match_optimizer(model, fitted(model), [mine, replace(mine, key="\x1bb")])
    assert state is None
    assert note == (
        'optimiser: the checkpoint holds 2 ("optimizer", "\\x1bb") and 2 of them fit the model; '
        "none is used, give --optimizer and --lr"
    )
    assert match_optimizer(model, fitted(model), []) == (None, "")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (torch.tensor(0.25), 0.25),
        (torch.tensor([0.25]), 0.25),
        (torch.tensor([1.0, 2.0]), None),
        (torch.tensor(float("nan")), None),
        (float("inf"), None),
        (-1.0, None),
        (10**400, None),
        (True, None),
        ("0.1", None),
        ([0.1], None),
    ],
)
def test_only_numbers_are_read_as_numbers(value: object, read: float | None) -> None:
    model = nn.Linear(2, 2)
    group = {"params": [0, 1], "lr": value, "betas": (value, 0.9), "amsgrad": False}
    state, _ = matched(model, Saved("", (group,), {0: {"step": value}}))
    assert state.facts.lr == read
    assert state.facts.betas == (None if read is None else (read, 0.9))
    assert state.step == (None if read is None else 0)


@pytest.mark.parametrize("params", [None, 3, "01", [None, 1.5], [[0]], {"a": 1}])
def test_odd_groups_are_declined_without_a_crash(params: object) -> None:
    moment: Sequence[object] = [1, 2]
    saved = Saved("", ({"params": params, "lr": 0.1}, {}), {0: {"exp_avg_sq": moment, "step": "x"}})
    state, _ = matched(nn.Linear(2, 2), saved)
    assert dict(state.second_moments) == {}
    assert state.step is None


@pytest.mark.skipif(
    "NNDIAG_CASES" not in os.environ, reason="NNDIAG_CASES does not name the folder of public checkpoints"
)
def test_an_agents_optimiser_is_matched_with_its_online_network() -> None:
    folder = Path(os.environ["NNDIAG_CASES"], "dqn_CartPole-v1")
    weights = torch.load(folder / "policy.pth", weights_only=True, map_location="cpu")
    content = torch.load(folder / "policy.optimizer.pth", weights_only=True, map_location="cpu")
    saved = Saved("policy.optimizer.pth", tuple(content["param_groups"]), content["state"])
    model = build_sequential(
        [["Linear", 4, 256], ["ReLU"], ["Linear", 256, 256], ["ReLU"], ["Linear", 256, 2]]
    )
    found = fit(model, [Place("", weights)], strip_prefix="q_net.q_net.")
    for known in (found, replace(found, entries=())):
        state, note = matched(model, saved, known)
        assert (state.facts.name, state.facts.lr, state.step) == ("adam", 0.0023, 24704)
        assert torch.equal(state.second_moments["4.weight"], content["state"][4]["exp_avg_sq"])
        assert "it indexes 12 parameters and the model has 6; matched by" in note
    target = fit(model, [Place("", weights)], strip_prefix="q_net_target.q_net.")
    state, note = matched(model, saved, target)
    assert dict(state.second_moments) == {}
    assert "belongs to other entries" in note
