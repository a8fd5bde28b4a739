"""Archives of agents that Stable-Baselines3 itself trained and wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from nndiag.checkpoint import open_checkpoint
from nndiag.model.fit import fit
from nndiag.model.optimizer import OptimizerState, match_optimizer

from .files import same_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library's own
    agents = pytest.importorskip("stable_baselines3", reason="the extra frameworks is not installed")


def trained(kind: str, environment: str = "CartPole-v1", **keywords: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = getattr(agents, kind)("MlpPolicy", environment, seed=0, device="cpu", **keywords)
        return agent.learn(128)


def reopened(agent: Any, path: Path) -> tuple[OptimizerState | None, str]:
    """Save and open an agent, make sure that its weights are the same, and match its optimisers."""
    agent.save(path)
    opened = open_checkpoint(path.with_suffix(".zip"))
    assert (opened.format, [place.key for place in opened.places]) == ("stable-baselines3", [""])
    assert same_tensors(dict(opened.places[0].tensors), agent.policy.state_dict())
    return match_optimizer(agent.policy, fit(agent.policy, opened.places), opened.optimizers)


def test_weights_and_moments_of_ppo_come_back(tmp_path: Path) -> None:
    agent = trained("PPO", n_steps=64, batch_size=32, n_epochs=1)
    state, note = reopened(agent, tmp_path / "ppo")
    assert state is not None
    assert (state.facts.name, state.facts.lr, state.step, note) == ("adam", 3e-4, 4, "")
    named = dict(agent.policy.named_parameters())
    assert set(state.second_moments) == set(named)
    for name, parameter in named.items():
        assert torch.equal(state.second_moments[name], agent.policy.optimizer.state[parameter]["exp_avg_sq"])


def test_moments_of_dqn_that_are_those_of_one_of_its_networks_are_declined_aloud(tmp_path: Path) -> None:
    state, note = reopened(trained("DQN", learning_starts=50, buffer_size=500), tmp_path / "dqn")
    assert state is not None
    assert (state.facts.name, state.facts.lr, dict(state.second_moments)) == ("adam", 1e-4, {})
    assert note == "optimiser: it indexes 6 parameters and the model has 12; its moments are left out"


def test_several_optimisers_of_sac_are_declined_aloud(tmp_path: Path) -> None:
    agent = trained("SAC", "Pendulum-v1", learning_starts=20, buffer_size=500)
    state, note = reopened(agent, tmp_path / "sac")
    assert state is None
    assert "actor.optimizer.pth" in note
    assert "none of them fit the model; none is used" in note
