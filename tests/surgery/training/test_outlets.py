"""Who listens to a unit: checked against the network itself, by shutting what was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.surgery.training.networks import NETWORKS, apart, network, outputs, ward

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
CLOSABLE = {
    "mlp": {"0", "2"},
    "smooth": {"0", "2"},
    "cnn": {"0", "3"},
    "odd": {"stem", "grouped", "up", "side"},
    "columns": {"up", "gate"},
    "residual": {"first"},
    "rnn": {"layer"},
    "gru": {"layer.l0", "layer.l1"},
    "lstm": {"layer.l0", "layer.l0_reverse", "layer.l1", "layer.l1_reverse"},
    "projected": set(),
    "cells": {"before", "cell"},
    "attention": {"before", "attention", "attention.out_proj"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_whose_units_can_be_shut(name: str) -> None:
    model, probe = network(name)
    assert {layer for layer, paths in ward(model, probe).paths.items() if paths.closable} == CLOSABLE[name]


@pytest.mark.parametrize(("name", "layer"), [(n, layer) for n in CLOSABLE for layer in sorted(CLOSABLE[n])])
def test_with_its_outlets_shut_nothing_depends_on_a_unit_and_with_them_it_does(name: str, layer: str) -> None:
    model, probe = network(name)
    place = ward(model, probe)
    unit = next(unit for unit in range(1, place.layers[layer].nodes) if place.paths[layer].closes(unit))
    untouched = outputs(model, probe)
    with torch.no_grad():
        for slot in place.layers[layer].slots:
            place.set_rows(slot, torch.tensor([unit]), torch.full((1, slot.width), 0.9))
    assert apart(untouched, outputs(model, probe)) > 1e-4
    with torch.no_grad():
        for outlet in place.paths[layer].outlets:
            outlet.outgoing(place.tensors()[outlet.weight], unit).zero_()
    shut = outputs(model, probe)
    with torch.no_grad():
        for slot in place.layers[layer].slots:
            place.set_rows(slot, torch.tensor([unit]), torch.full((1, slot.width), -1.7))
    assert apart(shut, outputs(model, probe)) < 1e-6


def test_the_others_are_heard_all_the_same_when_one_is_shut() -> None:
    model, probe = network("odd")
    place = ward(model, probe)
    for layer in CLOSABLE["odd"]:
        for outlet in place.paths[layer].outlets:
            weight = place.tensors()[outlet.weight]
            outlet.outgoing(weight, 1).fill_(7.0)
            assert (weight == 7.0).sum() == outlet.outgoing(weight, 1).numel()
            weight[weight == 7.0] = 0.1


def test_where_units_escape_to_is_said() -> None:
    model, probe = network("residual")
    paths = ward(model, probe).paths
    assert "add" in (paths["stem"].escape or "")
    assert paths["head"].is_output


def test_queries_and_keys_and_projected_states_are_not_shut() -> None:
    paths = ward(*network("attention")).paths["attention"]
    assert [unit for unit in range(24) if paths.closes(unit)] == list(range(16, 24))
    assert "heard through each other" in paths.open_because(3)
    projected = ward(*network("projected")).paths
    assert "projected" in projected["layer.l0"].open_because(0)


def test_packed_sequences_are_said_not_to_be_followed() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.gru, self.head = (
                nn.Linear(4, 5),
                nn.GRU(5, 6, batch_first=True),
                nn.Linear(6, 4),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lengths = [5] * len(x)
            packed = nn.utils.rnn.pack_padded_sequence(self.before(x), lengths, batch_first=True)
            return self.head(self.gru(packed)[1][0])

    torch.manual_seed(0)
    paths = ward(Packed().eval(), network("gru")[1]).paths
    assert not paths["gru"].closable
    assert "packed" in paths["gru"].open_because(0)
    assert not paths["before"].closable


def test_units_that_are_the_first_state_of_another_layer_are_not_shut() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(4, 6, batch_first=True), nn.GRU(4, 6, batch_first=True)
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(x, self.first(x)[1])[0][:, -1])

    torch.manual_seed(0)
    paths = ward(Decoder().eval(), network("gru")[1]).paths
    assert not paths["first"].closable
    assert "the first state of second" in paths["first"].open_because(0)
    assert paths["second"].closable


def test_what_a_constant_adds_is_what_the_layer_does_with_it() -> None:
    model, probe = network("odd")
    place = ward(model, probe)
    (outlet,) = place.paths["stem"].outlets
    weight = place.tensors()["grouped.weight"]
    x = torch.zeros(1, 6, 5, 5)
    x[:, 3] = 2.5
    wanted = torch.nn.functional.conv2d(x, weight, groups=3)[0, :, 1, 1]
    found = torch.zeros(6, dtype=torch.float64)
    found[outlet.heard_by(weight, 3)] = outlet.constant(weight, 3, torch.tensor([2.5], dtype=torch.float64))
    torch.testing.assert_close(found, wanted.double())


@pytest.mark.parametrize("name", ["mlp", "cnn", "columns", "attention", "gru"])
def test_all_units_at_once_are_what_each_is_alone(name: str) -> None:
    place = ward(*network(name))
    for layer, paths in place.paths.items():
        for outlet in paths.outlets if paths.closable else ():
            weight = place.tensors()[outlet.weight]
            entries = outlet.entries(weight)
            for unit in filter(paths.closes, range(place.layers[layer].nodes)):
                first = outlet.start + unit * outlet.inner
                own = entries[:, first : first + outlet.inner].reshape(len(entries), -1)
                assert torch.equal(own, outlet.outgoing(weight, unit).flatten(1))
