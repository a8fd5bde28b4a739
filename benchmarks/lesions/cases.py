"""Real networks to ablate: the samples of this repository, and checkpoints that others published."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

SAMPLES = Path(__file__).parents[2] / "sample_checkpoints"
RUNS = ("healthy_mlp", "dying_mlp", "weight_decay_collapse", "small_cnn_bn")
DQN = (("dqn_CartPole-v1", 4, 2), ("dqn_MountainCar-v0", 2, 3))
LIGHTNING = ("v0-epoch=2-step=2580", "v3-epoch=2-step=645", "v6-epoch=2-step=645")


@dataclass(frozen=True)
class Case:
    """A network with data; without labels its targets are never read."""

    name: str
    model: nn.Sequential
    data: tuple[Tensor, Tensor]
    loss: str
    labels: bool = True


def cases(published: str | None) -> tuple[Case, ...]:
    """Return the samples, and the published checkpoints in a folder, where one is named."""
    found = [*_samples()]
    if published and Path(published).is_dir():
        found += [*_dqn(Path(published)), *_lightning(Path(published))]
    return tuple(found)


def _samples() -> Iterator[Case]:
    for run in RUNS:
        folder = SAMPLES / run
        config = tomllib.loads((folder / "nndiag.toml").read_text(encoding="utf-8"))
        files = sorted(folder.glob(config["checkpoints"]["include"]))
        data = load_file(folder / config["probe"]["data"])
        for file in (files[len(files) // 2], files[-1]):
            model = _sequential(config["model"]["sequential"])
            model.load_state_dict(load_file(file))
            name = f"sample {run}, {file.stem}"
            yield Case(name, model.eval(), (data["x"], data["y"]), config["probe"]["loss"])


def _sequential(layers: list[list[object]]) -> nn.Sequential:
    parts = []
    for kind, *arguments in layers:
        keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        parts.append(getattr(nn, str(kind))(*arguments, **keywords))
    return nn.Sequential(*parts)


def _dqn(folder: Path) -> Iterator[Case]:
    for name, inputs, outputs in DQN:
        state = torch.load(folder / name / "policy.pth", weights_only=True, map_location="cpu")
        prefix = "q_net.q_net."
        model = _sequential(
            [["Linear", inputs, 256], ["ReLU"], ["Linear", 256, 256], ["ReLU"], ["Linear", 256, outputs]]
        )
        model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        x = torch.tensor(np.load(folder / name / "states.npz")["obs"]).float()
        yield Case(name, model.eval(), (x, torch.zeros(len(x), outputs)), "mse", labels=False)


def _lightning(folder: Path) -> Iterator[Case]:
    probe = np.load(folder / "mnist_probe" / "mnist_test1000.npz")
    images, labels = (probe[name] for name in sorted(probe.files, key=lambda key: -probe[key].ndim)[:2])
    x = (torch.tensor(images).float().reshape(len(images), -1) / 255 - 0.1307) / 0.3081
    y = torch.tensor(labels.astype(np.int64))
    layers = [["Linear", 784, 64], ["ReLU"], ["Linear", 64, 64], ["ReLU"], ["Linear", 64, 10]]
    for name in LIGHTNING:
        path = folder / "lightning_mnist" / f"{name}.ckpt"
        state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        model = _sequential([list(one) for one in layers])
        for place, key in ((0, "1"), (2, "4"), (4, "7")):
            model[place].load_state_dict({part: state[f"model.{key}.{part}"] for part in ("weight", "bias")})
        yield Case(f"lightning_mnist {name[:2]}", model.eval(), (x, y), "cross_entropy")
