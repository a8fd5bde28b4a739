"""The networks that lesions are planted in, trained for seconds with fixed seeds, and where their units are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lesions.digits import digits


@dataclass(frozen=True)
class Site:
    """A layer whose units can be wounded.

    ``layer`` is its name in a report, ``weights`` and ``biases`` name its parameters, of which a unit has ``gates``
    rows each, ``units`` apart. ``outgoing`` names the parameters whose columns listen to the unit, ``norm`` the norm
    between it and its activation. ``constant`` names a norm before it, along which weights can see one constant;
    ``listener`` is the module whose input are the units' outputs, last axis.
    """

    layer: str
    units: int
    activation: str
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    outgoing: tuple[str, ...]
    gates: int = 1
    norm: str | None = None
    constant: str | None = None
    listener: str | None = None


@dataclass(frozen=True)
class Architecture:
    """How to build a network, its sites, and how long it trains; ``fresh`` that no rule was adjusted on its kind."""

    name: str
    build: Callable[[], nn.Module]
    sites: tuple[Site, ...]
    epochs: int
    rate: float = 3e-3
    fresh: bool = False


def _linear(layer: str, units: int, activation: str, outgoing: str, constant: str | None = None) -> Site:
    weights, biases = (f"{layer}.weight",), (f"{layer}.bias",)
    return Site(
        layer, units, activation, weights, biases, (f"{outgoing}.weight",), constant=constant, listener=outgoing
    )  # fmt: skip


def _recurrent(kind: str, gates: int) -> Site:
    weights, biases = ("core.weight_ih_l0", "core.weight_hh_l0"), ("core.bias_ih_l0", "core.bias_hh_l0")
    return Site("core", 32, kind, weights, biases, ("head.weight", weights[1]), gates=gates)


class Cnn(nn.Module):
    """Two convolutions with BatchNorm and ReLU, and a mean over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x.view(-1, 1, 8, 8))))
        x = F.relu(self.bn2(self.conv2(F.max_pool2d(x, 2))))
        return self.fc(x.mean(dim=(2, 3)))


class Block(nn.Module):
    """A transformer block, norm first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            one(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """The eight rows of a digit as tokens, two blocks with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(0.1 * torch.randn(8, 32))
        self.blocks = nn.ModuleList([Block(32, 4, 64), Block(32, 4, 64)])
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(-1, 8, 8)) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(dim=1))


class Recurrent(nn.Module):
    """An LSTM or a GRU over the eight rows of a digit."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.core, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x.view(-1, 8, 8))[0][:, -1])


class Residual(nn.Module):
    """Three residual blocks with LayerNorm and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.ups = nn.ModuleList(nn.Linear(32, 48) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(48, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            h = h + down(F.relu(up(norm(h))))
        return self.head(h)


def _mlp(activation: type[nn.Module], wide: int, narrow: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(64, wide), activation(), nn.Linear(wide, narrow), activation(), nn.Linear(narrow, 10)
    )


ARCHITECTURES = (
    Architecture(
        "ReLU MLP", _mlp(nn.ReLU, 64, 32), (_linear("0", 64, "relu", "2"), _linear("2", 32, "relu", "4")), 30
    ),
    Architecture(
        "tanh MLP", _mlp(nn.Tanh, 48, 24), (_linear("0", 48, "tanh", "2"), _linear("2", 24, "tanh", "4")), 30
    ),
    Architecture(
        "CNN with BatchNorm",
        Cnn,
        (
            Site("conv1", 16, "relu", ("conv1.weight",), (), ("conv2.weight",), norm="bn1"),
            Site("conv2", 32, "relu", ("conv2.weight",), (), ("fc.weight",), norm="bn2", listener="fc"),
        ),
        15,
    ),
    Architecture(
        "GELU transformer",
        Transformer,
        tuple(
            _linear(f"blocks.{i}.up", 64, "gelu", f"blocks.{i}.down", constant=f"blocks.{i}.norm2")
            for i in (1,)
        ),
        20,
    ),
    Architecture(
        "LSTM",
        lambda: Recurrent(nn.LSTM),
        (_recurrent("lstm", 4),),
        30,
    ),
    Architecture("GRU", lambda: Recurrent(nn.GRU), (_recurrent("gru", 3),), 30, fresh=True),
    Architecture(
        "residual ReLU network",
        Residual,
        tuple(_linear(f"ups.{i}", 48, "relu", f"downs.{i}", constant=f"norms.{i}") for i in (0, 2)),
        20,
        fresh=True,
    ),
)


LISTENERS = {
    "0": "2", "2": "4", "conv1": "conv2", "bn1": "conv2", "conv2": "fc", "bn2": "fc", "core": "head",
    **{f"ups.{i}": f"downs.{i}" for i in range(3)},
    **{f"blocks.{i}.up": f"blocks.{i}.down" for i in range(2)},
    **{f"blocks.{i}.value": f"blocks.{i}.out" for i in range(2)},
}  # fmt: skip
"""By layer, the module that takes its units' outputs in; of recurrent units only the last state."""


def trained(architecture: Architecture, seed: int) -> nn.Module:
    """Return a copy of a network trained with this seed."""
    return copy.deepcopy(_trained(architecture.name, seed))


@cache
def _trained(name: str, seed: int) -> nn.Module:
    architecture = next(one for one in ARCHITECTURES if one.name == name)
    torch.manual_seed(seed)
    model = architecture.build()
    x, y = digits().train
    optimizer = torch.optim.Adam(model.parameters(), lr=architecture.rate)
    for _ in range(architecture.epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on the samples that figures are reported on."""
    x, y = digits().reporting
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())
