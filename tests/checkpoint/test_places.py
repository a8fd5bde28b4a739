from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from nndiag.checkpoint.places import find_places

PATH = Path("x.pt")


def keys(tree: object) -> list[str]:
    return [place.key for place in find_places(PATH, tree)]


def weights() -> dict[str, object]:
    return {"w": torch.ones(2, 2), "b": torch.ones(2)}


def test_nested_dicts_are_places_of_their_own() -> None:
    assert keys({"encoder": weights(), "parts": {"decoder": weights()}}) == ["encoder", "parts.decoder"]


def test_flat_dict_may_hold_a_few_other_values() -> None:
    tree = {**weights(), "_metadata": {"": {"version": 1}}, "version": 3}
    (place,) = find_places(PATH, tree)
    assert place.key == ""
    assert set(place.tensors) == {"w", "b"}


def test_dict_of_mostly_other_values_is_no_place() -> None:
    assert keys({"best": torch.ones(3), "epoch": 1, "lr": 0.1}) == []


def test_losses_are_no_place() -> None:
    assert keys({"loss": torch.tensor(1.0), "accuracy": torch.tensor(0.5)}) == []


def test_state_of_optimizers_and_schedulers_is_no_place() -> None:
    momentum = {"state": {}, "param_groups": [], "extra": torch.ones(2)}
    tree = {"anything": momentum, "optimizer": weights(), "Optim": weights(), "lr_schedulers": weights()}
    assert keys(tree) == []


def test_online_and_target_networks_are_both_found() -> None:
    assert keys({"online": weights(), "target": weights()}) == ["online", "target"]


def test_depth_is_limited_to_six() -> None:
    deep: object = weights()
    for name in "fedcba":
        deep = {name: deep}
    assert keys(deep) == ["a.b.c.d.e.f"]
    assert keys({"z": deep}) == []


def test_dict_that_contains_itself_is_visited_once() -> None:
    tree: dict[str, object] = {"model": weights()}
    for index in range(50):
        tree[f"self{index}"] = tree
    assert keys(tree) == ["model"]


def test_attributes_of_an_ordered_dict_do_not_replace_its_methods() -> None:
    tree = OrderedDict(weights())
    tree.__dict__.update({"items": 1, "keys": 2, "get": 3, "values": 4})
    assert keys(tree) == [""]
