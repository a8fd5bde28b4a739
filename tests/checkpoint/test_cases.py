"""Checkpoints that other people trained and published, where the environment says they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nndiag.checkpoint import find_checkpoints, open_checkpoint

CASES = os.environ.get("NNDIAG_CASES", "")
pytestmark = pytest.mark.skipif(
    not CASES, reason="NNDIAG_CASES does not name the folder of published checkpoints"
)


@pytest.mark.parametrize(("case", "step"), [("dqn_CartPole-v1", 24704), ("dqn_MountainCar-v0", 59504)])
def test_dqn_agents(case: str, step: int) -> None:
    (path,) = find_checkpoints(Path(CASES) / case)
    assert path.name == "policy.pth"
    opened = open_checkpoint(path)
    (place,) = opened.places
    assert [name for name in place.tensors if name.endswith("0.weight")] == [
        "q_net.q_net.0.weight",
        "q_net_target.q_net.0.weight",
    ]
    (saved,) = opened.optimizers
    assert saved.key == "policy.optimizer.pth"
    assert saved.groups[0]["params"] == tuple(range(12))
    assert len(saved.state) == 6
    assert opened.step == step


def test_lightning_runs_come_in_order() -> None:
    found = find_checkpoints(Path(CASES) / "lightning_mnist")
    assert [open_checkpoint(path).step for path in found] == [645, 645, 2580]
    opened = open_checkpoint(found[0])
    assert opened.epoch == 2
    assert [place.key for place in opened.places] == ["state_dict"]
    assert [saved.key for saved in opened.optimizers] == ["optimizer_states.0"]
    assert opened.optimizers[0].groups[0]["lr"] == 0.0002


def test_plain_state_dict() -> None:
    (path,) = find_checkpoints(Path(CASES) / "fashion_mlp")
    opened = open_checkpoint(path)
    assert {name: tuple(tensor.shape) for name, tensor in opened.places[0].tensors.items()} == {
        "fc1.weight": (512, 784),
        "fc1.bias": (512,),
        "fc2.weight": (10, 512),
        "fc2.bias": (10,),
    }
    assert (opened.step, opened.epoch, opened.optimizers) == (None, None, ())
