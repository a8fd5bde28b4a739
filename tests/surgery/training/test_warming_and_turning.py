"""Biases raised until data fire again, and weights turned that the gradient only rescales."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nndiag.probe.probe import Probe
from nndiag.remedies.plan import Treatment
from nndiag.surgery.training.readings import read_units
from nndiag.surgery.training.treating import treat
from nndiag.surgery.training.trial import Limit
from nndiag.surgery.training.turning import turn
from nndiag.surgery.training.warming import warm_layer, warm_nodes
from tests.surgery.training.networks import network, treated, ward

WARM = [Treatment("0", None, "ND250", "bias_warmup", "dead data")]


def test_after_a_warm_up_every_sample_fires_a_unit_and_the_weakest_one_just_so() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[0].bias -= 2.0
    place = ward(model, probe)
    z = model[0](probe.inputs[0]).detach()
    dead = (z.amax(dim=1) <= 0).float().mean()
    assert 0.05 < float(dead) < 1
    delta = warm_layer(place, "0")
    assert delta is not None
    expected = -float(z.amax(dim=1).min()) + 0.01 * float(z.std(correction=0))
    assert abs(delta - expected) < 1e-5
    weakest = model[0](probe.inputs[0]).detach().amax(dim=1).min()
    assert 0 < float(weakest) < 0.02 * float(z.std())


def test_a_node_fires_after_its_bias_was_raised_also_where_samples_repeat() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[0].bias[[1, 4]] = -100.0
    few = Probe((probe.inputs[0][:6].repeat(40, 1),), None, None)
    place = ward(model, few)
    assert warm_nodes(place, "0", [1, 4]) is not None
    fires = (model[0](few.inputs[0]).detach() > 0).float().mean(dim=0)[[1, 4]]
    assert fires.tolist() == pytest.approx([1 / 6] * 2)  # one of the six, and not none


def test_a_norm_is_warmed_by_its_shift() -> None:
    model, probe = network("cnn")
    with torch.no_grad():
        model[1].bias -= 4.0
    place = ward(model, probe)
    before = model[0].bias.detach().clone()
    assert warm_layer(place, "0") is not None
    assert torch.equal(model[0].bias, before)
    with place.looking():
        covered = read_units(model, probe, place.owners, ["0"])["0"].covered
    assert float(covered.min()) > 0


def test_a_layer_whose_data_are_alive_is_not_warmed() -> None:
    model, probe = network("mlp")
    place = ward(model, probe)
    with torch.no_grad():
        model[0].bias += 10.0
    before = place.state()
    found = treated(place, WARM)
    assert not found.done
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.tensors().items())


def test_a_warm_up_that_costs_too_much_is_taken_back() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[0].bias -= 2.0
    place = ward(model, probe)
    before = place.state()
    found = treat(place, WARM, Limit(replace(place.replay(), loss=0.0), 0.0))
    assert not found.done
    assert "to raise its biases by" in found.left[0].reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.tensors().items())


def test_a_turned_node_keeps_its_length_turns_by_the_angle_and_the_loss_falls() -> None:
    model, probe = network("mlp")
    place = ward(model, probe)
    before, loss = model[0].weight.detach().clone(), place.replay().loss
    turn(place, "0", [2, 7], 0.05)
    after = model[0].weight.detach()
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    angles = torch.arccos(
        torch.nn.functional.cosine_similarity(after.double(), before.double(), dim=1).clamp(max=1)
    )
    torch.testing.assert_close(angles[[2, 7]], torch.full((2,), 0.05, dtype=torch.float64), rtol=1e-3, atol=0)
    others = [node for node in range(12) if node not in (2, 7)]
    assert torch.equal(after[others], before[others])
    now = place.replay().loss
    assert loss is not None
    assert now is not None
    assert now < loss


def test_where_the_gradient_only_rescales_it_has_a_part_that_turns_afterwards() -> None:
    model, probe = network("mlp")
    feature = torch.nn.functional.normalize(torch.arange(1.0, 7.0), dim=0)
    probe = replace(
        probe, inputs=(probe.inputs[0][:, :1] * feature,)
    )  # one feature is all that reaches the node
    with torch.no_grad():
        model[0].weight[3] = feature
    place = ward(model, probe)
    assert torque(place, 3) < 1e-5
    found = treated(place, [Treatment("0", 3, "ND302", "angular_noise", "no torque")], share=0.1)
    assert [done.promise for done in found.done] == ["measured"]
    assert abs(torque(place, 3) - math.sin(0.1)) < 1e-3


def test_a_turn_that_costs_too_much_is_taken_back() -> None:
    model, probe = network("mlp")
    place = ward(model, probe)
    before = place.state()
    never = Limit(replace(place.replay(), loss=0.0), 0.0)
    found = treat(place, [Treatment("0", 3, "ND302", "angular_noise", "no torque")], never)
    assert not found.done
    assert "to turn it by 0.01 rad would raise the loss" in found.left[0].reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.tensors().items())


def torque(place: object, node: int) -> float:
    gradient = place.replay(gradients=True).gradients["0.weight"][node].double()  # type: ignore[attr-defined]
    weight = place.tensors()["0.weight"][node].double()  # type: ignore[attr-defined]
    along = (gradient @ weight) / weight.norm() ** 2 * weight
    return float((gradient - along).norm() / gradient.norm())
