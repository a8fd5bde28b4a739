"""A sample run as one record: network, probe, checkpoints and what was counted. Nothing here trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Spec = list[list[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """The weights at one moment. `file` has no ending; `place` becomes the metadata."""

    file: str
    place: dict[str, int | str]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """Everything that is written into one run directory; the verdict is the first line of its README."""

    name: str
    network: str
    verdict: str
    story: str
    spec: Spec
    probe: dict[str, Tensor]
    probe_source: str
    loss: str
    include: str
    checkpoints: list[Checkpoint]
    facts: dict[str, Any]
    optimizer: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, float] = field(default_factory=dict)


def build(spec: Spec) -> nn.Sequential:
    """The network that a `sequential` list of nndiag.toml describes; a last table holds keywords."""
    layers = []
    for name, *args in spec:
        kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
        layers.append(getattr(nn, name)(*args, **kwargs))
    return nn.Sequential(*layers)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state that later steps do not touch."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def at_epoch(network: nn.Module, epoch: int, step: int, digits: int = 2) -> Checkpoint:
    """The checkpoint of an epoch, named after it."""
    return Checkpoint(f"epoch_{epoch:0{digits}d}", {"epoch": epoch, "step": step}, snapshot(network))


def replay(spec: Spec, checkpoints: list[Checkpoint]) -> Iterator[tuple[Checkpoint, nn.Sequential]]:
    """Each checkpoint with a network in eval mode that carries its weights."""
    for checkpoint in checkpoints:
        network = build(spec)
        network.load_state_dict(checkpoint.state)
        yield checkpoint, network.eval()


def mean_loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """The probe loss, a mean over samples."""
    return {"cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss}[kind](output, target)


def rounded(value: float) -> float:
    """Six significant digits: what facts.json holds."""
    return float(f"{value:.6g}")


def flat(network: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])
