"""Checkpoints that other people trained and published, where the environment says that they are.

The counts of dead units were taken independently, by patching ReLU and counting units that never rise above
zero on the probe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nndiag.cli import main

CASES = Path(os.environ.get("NNDIAG_CASES") or "unset")
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="NNDIAG_CASES does not name the folder of the published checkpoints"
)

MODELS = """
from collections import OrderedDict

from torch import nn


def agent(inputs, actions):
    return nn.Sequential(
        nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, actions)
    )


def fashion():
    return nn.Sequential(OrderedDict(
        flatten=nn.Flatten(), fc1=nn.Linear(784, 512), relu=nn.ReLU(), fc2=nn.Linear(512, 10)
    ))


def mnist():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(),
        nn.Dropout(0.1), nn.Linear(64, 10), nn.LogSoftmax(dim=1),
    )
"""
Scan = Callable[..., Any]


@pytest.fixture
def scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Scan]:
    """Run the command line, on one thread, and return the only checkpoint of its JSON."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)

    def run(*words: object) -> Any:
        code = main(["scan", *map(str, words), "--format", "json", "--threads", "1"])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        (found,) = json.loads(captured.out)["checkpoints"]
        return found

    yield run
    torch.set_num_threads(threads)


def dead(found: Any) -> dict[str, int]:
    """Count the nodes with ND201 by layer."""
    counts = {layer["name"]: 0 for layer in found["layers"]}
    for node in found["nodes"]:
        counts[node["layer"]] += any(finding["code"] == "ND201" for finding in node["findings"])
    return counts


def agent_model(case: str) -> tuple[str, ...]:
    inputs, actions = (4, 2) if "CartPole" in case else (2, 3)
    sizes = ("--model-arg", f"inputs={inputs}", "--model-arg", f"actions={actions}")
    return (str(CASES / case / "policy.pth"), "--model", "models.py:agent", *sizes)


@pytest.mark.parametrize(
    ("case", "parts", "first", "second"),
    [
        ("dqn_CartPole-v1", ("obs",), 119, 208),
        ("dqn_CartPole-v1", ("obs", "random_obs"), 43, 194),
        ("dqn_MountainCar-v0", ("obs",), 149, 240),
        ("dqn_MountainCar-v0", ("obs", "random_obs"), 149, 240),
    ],
)
def test_dead_units_of_agents(
    scan: Scan, tmp_path: Path, case: str, parts: tuple[str, ...], first: int, second: int
) -> None:
    states = np.load(CASES / case / "states.npz")
    np.savez(tmp_path / "states.npz", x=np.concatenate([states[part] for part in parts]))
    words = (*agent_model(case), "--strip-prefix", "q_net.q_net", "--data", "states.npz")
    found = scan(*words, "--level", "activations")
    assert dead(found) == {"0": first, "2": second, "4": 0}
    assert found["checkpoint"]["optimizer"]["name"] == "adam"


def test_two_networks_that_fit_are_both_named(tmp_path: Path, scan: Scan, capfd: Any) -> None:
    assert main(["scan", *agent_model("dqn_CartPole-v1")]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "q_net.q_net." in line
    assert "q_net_target.q_net." in line
    assert "--strip-prefix" in line


def test_a_healthy_network_has_no_dead_units(scan: Scan, tmp_path: Path) -> None:
    sprite = np.load(CASES / "fashion_mlp" / "fashion_sprite900.npz")["x"]
    np.savez(tmp_path / "probe.npz", x=normalised(sprite))
    (weights,) = (CASES / "fashion_mlp").glob("*.pt*")
    found = scan(weights, "--model", "models.py:fashion", "--data", "probe.npz", "--level", "activations")
    assert dead(found) == {"fc1": 0, "fc2": 0}


@pytest.mark.parametrize("version", ["0", "3", "6"])
def test_lightning_needs_no_option_but_the_model(scan: Scan, tmp_path: Path, version: str) -> None:
    (checkpoint,) = [
        file for file in (CASES / "lightning_mnist").rglob("*.ckpt") if file.name.startswith(f"v{version}-")
    ]
    (file,) = (CASES / "mnist_probe").glob("*.npz")
    images = normalised(np.load(file)["x"])
    np.savez(tmp_path / "probe.npz", x=images)
    found = scan(checkpoint, "--model", "models.py:mnist", "--data", "probe.npz", "--level", "activations")
    counted = dead(found)
    assert [counted["1"], counted["4"], counted["7"]] == [*dead_by_hand(checkpoint, images), 0]
    assert found["checkpoint"]["optimizer"]["name"] == "adam"


def normalised(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.float32) / 255 - 0.1307) / 0.3081).reshape(len(pixels), -1)


def dead_by_hand(checkpoint: Path, images: np.ndarray) -> list[int]:
    """Count the units that are zero behind ReLU on every image, with a hook and nothing of this project."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = {name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()}
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Identity(), nn.Linear(64, 64), nn.ReLU(),
        nn.Identity(), nn.Linear(64, 10),
    )  # fmt: skip
    net.load_state_dict(state)
    counts: list[int] = []
    for module in net:
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(
                lambda _, __, output: counts.append(int((output <= 0).all(dim=0).sum()))
            )
    with torch.no_grad():
        net(torch.from_numpy(images))
    return counts
