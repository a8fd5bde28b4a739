"""Published agents and the dying sample, pruned; counts of dead units taken here by looking at rectifiers."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nndiag.model.sequential import build_sequential
from nndiag.pipeline.in_memory import diagnose_model
from nndiag.remedies.plan import Treatment
from nndiag.surgery.deploying import Deployed, deploy
from tests.surgery.deploying.networks import largest_difference, prune

CASES = Path(os.environ.get("NNDIAG_CASES") or "unset")
DYING = Path(__file__).parents[3] / "sample_checkpoints" / "dying_mlp"


def dead_units(model: nn.Sequential, x: Tensor) -> list[Treatment]:
    found: list[Treatment] = []
    with torch.no_grad():
        for place, module in enumerate(model):
            x = module(x)
            if isinstance(module, nn.ReLU):
                found += prune(str(place - 1), torch.nonzero((x <= 0).all(dim=0)).flatten().tolist())
    return found


def dead_by_the_scan(model: nn.Module, x: Tensor) -> int:
    (checkpoint,) = diagnose_model(model, x, None, None).checkpoints
    return sum(finding.code == "ND201" for node in checkpoint.nodes for finding in node.findings)


def pruned(model: nn.Sequential, x: Tensor) -> tuple[Deployed, list[Treatment]]:
    treatments = dead_units(model, x)
    return deploy(model, [(part,) for part in x.split(1024)], treatments), treatments


@pytest.mark.skipif(
    not CASES.is_dir(), reason="NNDIAG_CASES does not name the folder of the published checkpoints"
)
@pytest.mark.parametrize(
    ("case", "inputs", "actions", "dead"),
    [("dqn_CartPole-v1", 4, 2, (43, 194)), ("dqn_MountainCar-v0", 2, 3, (149, 240))],
)
def test_an_agent_loses_its_dead_units(case: str, inputs: int, actions: int, dead: tuple[int, int]) -> None:
    model = nn.Sequential(
        nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, actions)
    )
    prefix = "q_net.q_net."
    state = torch.load(CASES / case / "policy.pth", weights_only=True, map_location="cpu")
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    states = np.load(CASES / case / "states.npz")
    x = torch.from_numpy(np.concatenate([states["obs"], states["random_obs"]])).float()
    found, treatments = pruned(model, x)
    assert {one.did for one in found.done} == {"removed"}
    assert len(treatments) == sum(dead)
    assert (found.module[0].out_features, found.module[2].out_features) == (256 - dead[0], 256 - dead[1])
    assert largest_difference(model, found, x) <= 1e-6
    assert dead_by_the_scan(model, x) == sum(dead)
    assert dead_by_the_scan(found.module, x) == 0


def test_the_dying_sample_loses_its_dead_units() -> None:
    entries = tomllib.loads((DYING / "nndiag.toml").read_text())["model"]["sequential"]
    model = build_sequential(entries)
    assert isinstance(model, nn.Sequential)
    last = sorted(DYING.glob("epoch_*.safetensors"))[-1]
    model.load_state_dict(load_file(last))
    x = load_file(DYING / "probe.safetensors")["x"]
    found, treatments = pruned(model, x)
    assert len(treatments) > 50
    assert {one.did for one in found.done} <= {"removed", "zeroed"}
    assert all("cannot be empty" in one.why for one in found.done if one.did == "zeroed")
    assert largest_difference(model, found, x) <= 1e-6
    assert dead_by_the_scan(model, x) == len(treatments)
    assert dead_by_the_scan(found.module, x) == 0
