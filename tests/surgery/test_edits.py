"""Edits of edits: what one says of a network and another of the result, said at once."""

from __future__ import annotations

import torch

from nndiag.surgery.edits import Edits


def test_nothing_is_nothing() -> None:
    assert not Edits()
    assert not Edits().then(Edits())
    assert Edits(values={"a": torch.ones(1)})


def test_indices_count_from_the_first_network() -> None:
    old = torch.arange(30).reshape(5, 6)
    rows, columns = torch.tensor([0, 2, 3, 4]), torch.tensor([1, 3, 5])
    once = old[rows]
    twice = once[torch.tensor([1, 3])][:, columns]
    first = Edits(values={"w": once}, kept={"w": (rows, None)}, reset={"w": once % 2 == 0})
    second = Edits(values={"w": twice}, kept={"w": (torch.tensor([1, 3]), columns)}, reset={"w": twice == 13})
    both = first.then(second)
    places = both.kept["w"]
    assert places[0] is not None
    assert places[1] is not None
    assert torch.equal(old[places[0]][:, places[1]], twice)
    assert torch.equal(both.values["w"], twice)
    assert torch.equal(both.reset["w"], (twice % 2 == 0) | (twice == 13))


def test_names_of_either_are_there() -> None:
    first = Edits(values={"a": torch.zeros(2)}, kept={"a": (torch.tensor([0, 3]),)})
    second = Edits(values={"b": torch.zeros(1)}, kept={"b": (torch.tensor([4]),)})
    both = first.then(second)
    assert both.values.keys() == both.kept.keys() == {"a", "b"}
