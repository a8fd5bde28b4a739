"""Nodes that were started anew are known again, so that they are left to training."""

from __future__ import annotations

import pytest
import torch

from nndiag.surgery.training.hushed import hushed
from nndiag.surgery.training.sorting import WEAK, WHISPERS
from tests.surgery.training.networks import anew, network, treated, ward

LAYERS = {"mlp": ("0", "2"), "cnn": ("0", "3"), "odd": ("stem", "grouped"), "gru": ("layer.l0", "layer.l1"),
          "lstm": ("layer.l0", "layer.l1_reverse"), "cells": ("before", "cell"),
          "attention": ("before", "attention")}  # fmt: skip
NODES = {"attention": [17, 20]}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("code", sorted(WEAK))
def test_what_was_started_anew_is_not_started_anew_again(name: str, code: str) -> None:
    model, probe = network(name)
    first, second = LAYERS[name]
    wanted = anew(first, [1, 4], "ND204") + anew(second, NODES.get(name, [1, 3]), "ND204")
    place = ward(model, probe)
    done = treated(place, wanted, share=1e9).done
    assert len(done) == 4
    quiet = hushed(place, [first, second])
    assert {(layer, int(node)) for layer in quiet for node in quiet[layer].nonzero()} == {
        (one.treatment.layer, one.treatment.index) for one in done
    }
    again = ward(model, probe)
    written = again.state()
    found = treated(again, anew(first, [1, 4], code) + anew(second, NODES.get(name, [1, 3]), code))
    assert not found.done
    assert {left.reason for left in found.left} == {WHISPERS}
    assert all(torch.equal(tensor, written[key]) for key, tensor in again.tensors().items())


def test_nodes_of_a_whole_layer_that_is_new_hear_each_other_and_are_known_all_the_same() -> None:
    model, probe = network("mlp")
    place = ward(model, probe)
    treated(place, anew("0", range(12), "ND204") + anew("2", range(9), "ND204"), share=1e9)
    quiet = hushed(place, ["0"])
    assert quiet["0"].all()
    assert quiet["2"].all()


def test_queries_and_keys_of_a_head_whose_values_are_new_wait_with_them() -> None:
    model, probe = network("attention")
    place = ward(model, probe)
    treated(place, anew("attention", range(16, 20), "ND204"), share=1e9)
    quiet = hushed(place, ["attention"])["attention"]
    assert quiet.nonzero().flatten().tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]


def test_one_loud_weight_is_enough_to_be_heard() -> None:
    model, probe = network("mlp")
    place = ward(model, probe)
    treated(place, anew("0", [1, 4], "ND204"), share=1e9)
    with torch.no_grad():
        model[2].weight[3, 4] = 0.01
    assert hushed(place, ["0"])["0"].nonzero().flatten().tolist() == [1]


def test_of_layers_whose_listeners_are_not_known_nothing_is_said() -> None:
    assert not hushed(ward(*network("residual")), ["stem", "head", "nowhere"])
