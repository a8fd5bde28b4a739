"""Which optimiser follows: never by a guess, and never left behind with shapes that no longer fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.surgery.writing.networks import adam, healed, network, pruned, step, trained, written


def saved(tmp_path: Path, **value: Any) -> Path:
    """Write a training checkpoint."""
    torch.save(value, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def loaded(path: Path) -> Any:
    """Read it."""
    return torch.load(path, weights_only=True)


def test_an_optimiser_of_other_shapes_stays_or_is_emptied_and_it_is_said(tmp_path: Path) -> None:
    model, _ = trained()
    flat = nn.Parameter(torch.zeros(75))  # as FSDP flattens them
    optimizer = torch.optim.Adam([flat])
    flat.grad = torch.ones(75)
    optimizer.step()
    source = saved(tmp_path, model=model.state_dict(), optimizer=optimizer.state_dict())
    (note,) = written(source, healed(model), tmp_path / "b.pt", model).notes
    assert note.startswith('optimiser "optimizer": it indexes 1 parameters and the model has 6')
    assert note.endswith("its state was kept as it was, also for what was healed")
    assert loaded(tmp_path / "b.pt")["optimizer"]["state"][0]["exp_avg"].any()
    (note,) = written(source, pruned(model), tmp_path / "c.pt", model).notes
    assert note.endswith("its state was left out, so that it starts afresh")
    found = loaded(tmp_path / "c.pt")["optimizer"]
    assert found["state"] == {}
    assert found["param_groups"] == optimizer.state_dict()["param_groups"]
    torch.optim.Adam([flat]).load_state_dict(found)


def test_of_two_optimisers_that_fit_neither_is_guessed(tmp_path: Path) -> None:
    model, one = trained()
    _, two = trained(steps=5)
    source = saved(tmp_path, model=model.state_dict(), optimizers=[one.state_dict(), two.state_dict()])
    notes = written(source, pruned(model), tmp_path / "b.pt", model).notes
    assert [note.partition(":")[0] for note in notes] == [
        'optimiser "optimizers.0"', 'optimiser "optimizers.1"',
    ]  # fmt: skip
    assert [state["state"] for state in loaded(tmp_path / "b.pt")["optimizers"]] == [{}, {}]
    written(source, healed(model), tmp_path / "c.pt", model)
    for found, kept in zip(loaded(tmp_path / "c.pt")["optimizers"], (one, two), strict=True):
        assert torch.equal(found["state"][0]["exp_avg"], kept.state_dict()["state"][0]["exp_avg"])


def test_the_optimiser_of_another_network_stays(tmp_path: Path) -> None:
    model, optimizer = trained()
    other = nn.Linear(7, 2)
    others = torch.optim.Adam(other.parameters())
    other(torch.ones(3, 7)).sum().backward()
    others.step()
    source = saved(
        tmp_path, actor=model.state_dict(), critic=other.state_dict(),
        optimizers={"actor": optimizer.state_dict(), "critic": others.state_dict()},
    )  # fmt: skip
    assert written(source, pruned(model), tmp_path / "b.pt", model).notes == ()
    found = loaded(tmp_path / "b.pt")["optimizers"]
    assert found["actor"]["state"][0]["exp_avg"].shape == (4, 4)
    assert torch.equal(found["critic"]["state"][0]["exp_avg"], others.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize("named", [True, False])
def test_groups_and_names_are_followed(tmp_path: Path, named: bool) -> None:
    model = network()
    parameters: Any = model.named_parameters() if named else model.parameters()
    groups = list(parameters)
    optimizer = torch.optim.AdamW([{"params": groups[:2], "lr": 0.1}, {"params": groups[2:], "lr": 0.01}])
    step(model, optimizer)
    source = saved(tmp_path, model=model.state_dict(), optimizer=optimizer.state_dict())
    assert written(source, pruned(model), tmp_path / "b.pt", model).notes == ()
    again = network(4)
    parameters = list(again.named_parameters() if named else again.parameters())
    resumed = torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:]}])
    resumed.load_state_dict(loaded(tmp_path / "b.pt")["optimizer"])
    assert [group["lr"] for group in resumed.param_groups] == [0.1, 0.01]
    step(again, resumed)


def test_no_state_yet(tmp_path: Path) -> None:
    model = network()
    source = saved(tmp_path, model=model.state_dict(), optimizer=adam(model).state_dict())
    assert written(source, pruned(model), tmp_path / "b.pt", model).notes == ()
    adam(network(4)).load_state_dict(loaded(tmp_path / "b.pt")["optimizer"])
