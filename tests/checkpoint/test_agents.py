"""Archives of Stable-Baselines3."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nndiag.checkpoint import find_checkpoints, open_checkpoint
from nndiag.model.fit import fit
from nndiag.model.optimizer import match_optimizer

from .files import Payload, refusal, same_tensors


def policy() -> nn.ModuleDict:
    """An online and a target network, as a DQN agent has them."""
    torch.manual_seed(0)
    nets = {
        name: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for name in ("q_net", "q_net_target")
    }
    return nn.ModuleDict(nets)


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **parts: Any) -> Path:
    """Write what ``save_to_zip_file`` of Stable-Baselines3 writes, or something like it."""
    agent = policy()
    optimizer = torch.optim.Adam(agent["q_net"].parameters(), lr=0.01)
    agent["q_net"](torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    state = {"policy.pth": agent.state_dict(), "policy.optimizer.pth": optimizer.state_dict()}
    with zipfile.ZipFile(path, "w", compression) as new:
        new.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": "gASVDAAAAA=="}}))
        for name, value in (state | parts).items():
            buffer = io.BytesIO()
            torch.save(value, buffer)
            new.writestr(name, buffer.getvalue())
        new.writestr("_stable_baselines3_version", "2.4.0")
    return path


def test_policy_and_optimiser_come_back(tmp_path: Path) -> None:
    opened = open_checkpoint(archive(tmp_path / "rl_model_1000_steps.zip"))
    assert opened.format == "stable-baselines3"
    assert (
        same_tensors(dict(opened.places[0].tensors), dict(policy().state_dict())) is False
    )  # it has learnt nothing
    assert set(opened.places[0].tensors) == set(policy().state_dict())
    (saved,) = opened.optimizers
    assert (saved.key, saved.groups[0]["lr"], saved.state[0]["step"]) == ("policy.optimizer.pth", 0.01, 1)


def test_runs_of_agents_are_ordered_by_steps_and_other_archives_left_out(tmp_path: Path) -> None:
    for steps in (1000, 9000, 20000):
        archive(tmp_path / f"rl_model_{steps}_steps.zip", **{"policy.optimizer.pth": {}})
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as other:
        other.writestr("x.csv", "1,2")
    found = find_checkpoints(tmp_path)
    assert [path.name for path in found] == [f"rl_model_{steps}_steps.zip" for steps in (1000, 9000, 20000)]
    assert [open_checkpoint(path).step for path in found] == [1000, 9000, 20000]


@pytest.mark.parametrize("part", ["policy.pth", "policy.optimizer.pth"])
def test_payload_in_a_part_does_not_run(tmp_path: Path, part: str) -> None:
    marker = tmp_path / "ran"
    content = {"w": torch.ones(2, 2), "x": Payload(marker)}
    refusal(archive(tmp_path / "agent.zip", **{part: content}), "posix.mkdir")
    assert not marker.exists()


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    refusal(archive(tmp_path / "agent.zip", zipfile.ZIP_DEFLATED), "compressed")


def test_optimiser_of_the_online_network_is_matched_and_the_target_declined(tmp_path: Path) -> None:
    opened = open_checkpoint(archive(tmp_path / "agent.zip"))
    for prefix, matched in (("q_net", True), ("q_net_target", True)):
        model = policy()[prefix]
        state, note = match_optimizer(
            model, fit(model, opened.places, strip_prefix=prefix), opened.optimizers
        )
        assert state is not None
        assert bool(state.second_moments) == matched, note


def test_archive_that_the_library_wrote(tmp_path: Path) -> None:
    library = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed")
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    agent = library.DQN(
        "MlpPolicy", gymnasium.make("CartPole-v1"), learning_starts=8, buffer_size=64, device="cpu"
    )
    agent.learn(16)
    agent.save(tmp_path / "agent.zip")
    opened = open_checkpoint(tmp_path / "agent.zip")
    assert same_tensors(dict(opened.places[0].tensors), dict(agent.policy.state_dict()))
    assert opened.optimizers[0].groups[0]["lr"] == agent.learning_rate
