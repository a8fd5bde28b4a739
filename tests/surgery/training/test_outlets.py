"""Who listens to a unit: checked against the network itself, by shutting what was found."""

from __future__ import annotations

import pytest
import torch

from tests.surgery.training.networks import NETWORKS, apart, network, outputs, ward

CLOSABLE = {
    "mlp": {"0", "2"},
    "smooth": {"0", "2"},
    "cnn": {"0", "3"},
    "odd": {"stem", "grouped", "up", "side"},
    "columns": {"up", "gate"},
    "residual": {"first"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_whose_units_can_be_shut(name: str) -> None:
    model, probe = network(name)
    assert {layer for layer, paths in ward(model, probe).paths.items() if paths.closable} == CLOSABLE[name]


@pytest.mark.parametrize(("name", "layer"), [(n, layer) for n in CLOSABLE for layer in sorted(CLOSABLE[n])])
def test_with_its_outlets_shut_nothing_depends_on_a_unit_and_with_them_it_does(name: str, layer: str) -> None:
    model, probe = network(name)
    place = ward(model, probe)
    unit = 1
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
