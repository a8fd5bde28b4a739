"""Units of recurrent layers and values of attentions started anew: the function stays, and they live."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nndiag.probe.probe import Probe
from nndiag.surgery.training.evidence import look_closely
from nndiag.surgery.training.readings import read_units
from nndiag.surgery.training.ward import Ward
from tests.surgery.training.networks import anew, apart, network, outputs, treated, ward

CASES = {"rnn": ("layer", [1, 4]), "gru": ("layer.l0", [1, 4]), "lstm": ("layer.l1_reverse", [1, 4]),
         "cells": ("cell", [1, 4]), "attention": ("attention", [17, 20])}  # fmt: skip


def collapsed(name: str) -> tuple[nn.Module, Probe, Ward, str, list[int]]:
    model, probe = network(name)
    layer, nodes = CASES[name]
    place = ward(model, probe)
    with torch.no_grad():
        for slot in place.layers[layer].slots:
            rows = torch.zeros(len(nodes), slot.width)
            place.set_rows(slot, torch.tensor(nodes), rows)
    return model, probe, ward(model, probe), layer, nodes


def states(place: Ward, layer: str) -> Tensor:
    with place.looking():
        return read_units(place.model, place.probe, place.owners, [layer])[layer].raw


@pytest.mark.parametrize("name", CASES)
def test_collapsed_units_live_and_the_function_stays(name: str) -> None:
    model, probe, place, layer, nodes = collapsed(name)
    before = outputs(model, probe)
    assert not states(place, layer)[nodes].std(dim=1).any()
    found = treated(place, anew(layer, nodes, "ND102"))
    assert [(done.promise, done.treatment.index) for done in found.done] == [("unchanged", n) for n in nodes]
    assert apart(before, outputs(model, probe)) <= 1e-6
    assert states(place, layer)[nodes].std(dim=1).all()
    evidence = look_closely(place, [layer], place.replay(gradients=True).gradients)
    assert all(evidence.gradient(place.layers[layer], node) for node in nodes)
    assert all(evidence.outgoing(place, layer, node) for node in nodes)


@pytest.mark.parametrize("name", CASES)
def test_they_are_drawn_as_the_layer_draws_them_and_no_other_row_is_touched(name: str) -> None:
    model, _, place, layer, nodes = collapsed(name)
    old = {key: value.clone() for key, value in model.state_dict().items()}
    treated(place, anew(layer, nodes, "ND102"))
    others = [node for node in range(place.layers[layer].nodes) if node not in nodes]
    module = model.get_submodule(layer.partition(".l")[0])
    columns = {outlet.weight for outlet in place.paths[layer].outlets}
    for slot in place.layers[layer].slots:
        rows, before = slot.rows(place.tensors()[slot.parameter]), slot.rows(old[slot.parameter])
        if slot.parameter not in columns:
            assert torch.equal(rows[others], before[others])
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            bound = module.hidden_size**-0.5  # times what makes them as long as those of the living
            assert 0 < float(rows[nodes].abs().max()) <= 1.5 * bound
            assert rows[nodes].unflatten(1, (slot.outer, -1)).any(dim=2).all()  # every gate


@pytest.mark.parametrize("name", CASES)
def test_the_optimiser_forgets_their_rows_and_columns_and_nothing_else(name: str) -> None:
    _, _, place, layer, nodes = collapsed(name)
    wanted = {key: torch.zeros_like(value, dtype=torch.bool) for key, value in place.tensors().items()}
    for slot in place.layers[layer].slots:
        rows = torch.zeros(slot.nodes, slot.width, dtype=torch.bool)
        rows[nodes] = True
        wanted[slot.parameter] |= slot.parameter_of(rows)
    for outlet in place.paths[layer].outlets:
        for node in nodes:
            outlet.outgoing(wanted[outlet.weight], node).fill_(True)
    edits = treated(place, anew(layer, nodes, "ND102")).edits
    assert set(edits.reset) == {key for key, mask in wanted.items() if mask.any()}
    assert all(torch.equal(mask, wanted[key]) for key, mask in edits.reset.items())


@pytest.mark.parametrize("name", CASES)
def test_training_makes_them_heard(name: str) -> None:
    model, probe, place, layer, nodes = collapsed(name)
    treated(place, anew(layer, nodes, "ND102"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    assert probe.targets is not None
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(probe.inputs[0]), probe.targets).backward()
        optimizer.step()
    before = outputs(model, probe)
    for outlet in place.paths[layer].outlets:
        for node in nodes:
            outlet.outgoing(place.tensors()[outlet.weight], node).zero_()
    assert apart(before, outputs(model, probe)) > 1e-3


def test_a_state_that_is_constant_but_for_its_start_is_measured_before_it_goes() -> None:
    model, probe = network("gru")
    with torch.no_grad():
        for slot in ward(model, probe).layers["layer.l1"].slots:
            tensor = dict(model.named_parameters())[slot.parameter]
            tensor[[1, 7, 13]] = 0.0
        model.layer.bias_ih_l1[13] = 1.0  # it tends to tanh(1), from zero on
    place = ward(model, probe)
    found = treated(place, anew("layer.l1", [1], "ND204"), share=1.0)
    assert [done.promise for done in found.done] == ["measured"]


def test_a_query_that_its_key_lets_a_gradient_reach_is_left_to_training() -> None:
    model, probe = network("attention")
    with torch.no_grad():
        model.get_parameter("attention.in_proj_weight")[[2, 9]] = 0.0
        model.get_parameter("attention.in_proj_bias")[[2, 9]] = 0.0
    found = treated(ward(model, probe), anew("attention", [2, 9], "ND102"))
    assert not found.done
    assert [left.reason.partition(" that it")[0] for left in found.left] == [
        "a gradient reaches it through the key",
        "a gradient reaches it through the query",
    ]
    waiting = treated(ward(model, probe), anew("attention", [10, 1], "ND304"))
    assert [left.reason.partition(" is as good")[0] for left in waiting.left] == [
        "the query that it is multiplied with",
        "the key that it is multiplied with",
    ]


def both_zero() -> tuple[nn.Module, Probe]:
    model, probe = network("attention")
    with torch.no_grad():
        model.get_parameter("attention.in_proj_weight")[[2, 10]] = 0.0
        model.get_parameter("attention.in_proj_bias")[[2, 10]] = 0.0
    return model, probe


def test_a_query_and_its_key_that_are_both_zero_are_started_together() -> None:
    model, probe = both_zero()
    before, place = outputs(model, probe), ward(model, probe)
    found = treated(place, anew("attention", [2, 10], "ND102"))
    assert [(done.treatment.index, done.promise) for done in found.done] == [
        (2, "unchanged"),
        (10, "unchanged"),
    ]
    assert apart(before, outputs(model, probe)) <= 1e-6
    evidence = look_closely(place, ["attention"], place.replay(gradients=True).gradients)
    assert all(evidence.gradient(place.layers["attention"], node) for node in (2, 10))
    weight = model.get_parameter("attention.in_proj_weight").detach()
    assert 0 < float(weight[2].norm()) < 1e-6 < 0.1 < float(weight[10].norm())
    again = treated(ward(model, probe), anew("attention", [2], "ND102"))
    assert "a gradient reaches it through the key" in again.left[0].reason


def test_one_of_them_alone_is_left_with_the_reason() -> None:
    found = treated(ward(*both_zero()), anew("attention", [2], "ND102"))
    assert not found.done
    assert "heard through each other" in found.left[0].reason


def test_a_query_that_is_not_finite_is_drawn_anew_and_no_value_is_touched() -> None:
    model, probe = network("attention")
    old = model.get_parameter("attention.out_proj.weight").detach().clone()
    with torch.no_grad():
        model.get_parameter("attention.in_proj_weight")[12] = float("nan")
    place = ward(model, probe)
    assert [done.promise for done in treated(place, anew("attention", [12], "ND101")).done] == ["finite"]
    assert bool(outputs(model, probe).isfinite().all())
    assert torch.equal(old, model.get_parameter("attention.out_proj.weight"))


def test_a_row_of_an_attention_in_parts_is_left_with_the_reason() -> None:
    class InParts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 2
            self.query, self.key, self.value = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                part(x).view(len(x), -1, 2, 4).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.head(mixed.transpose(1, 2).flatten(2).mean(dim=1))

    torch.manual_seed(0)
    found = treated(ward(InParts().eval(), network("attention")[1]), anew("value", [2], "ND304"))
    assert "goes on into its whole head" in found.left[0].reason


@pytest.mark.parametrize("kind", ["kaiming_normal", "orthogonal"])
def test_a_named_initialiser_draws_a_row_for_every_gate(kind: str) -> None:
    _, probe, _, layer, nodes = collapsed("gru")
    model = collapsed("gru")[0]
    place = Ward(model, probe, 0, kind)
    treated(place, anew(layer, nodes, "ND102"))
    slot = place.layers[layer].weights[0]
    rows = slot.rows(place.tensors()[slot.parameter])[nodes].unflatten(1, (slot.outer, -1))
    assert rows.norm(dim=2).all()
