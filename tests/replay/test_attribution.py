"""An activation belongs to the layer whose units it acts on, however it is written and whatever lies between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.replay.networks import Between, inputs, layer, measured
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.records.level import Level

Middle = Callable[[Tensor, Between], Tensor]
ZERO = torch.zeros((), dtype=torch.float64)

WRITTEN: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "nn.ReLU": ("relu", nn.ReLU()),
    "nn.ReLU in place": ("relu", nn.ReLU(inplace=True)),
    "F.relu": ("relu", F.relu),
    "F.relu in place": ("relu", lambda z: F.relu(z, True)),
    "F.relu input=": ("relu", lambda z: F.relu(input=z)),
    "F.relu_": ("relu", F.relu_),
    "torch.relu": ("relu", torch.relu),
    "torch.relu_": ("relu", torch.relu_),
    "x.relu": ("relu", lambda z: z.relu()),
    "x.relu_": ("relu", lambda z: z.relu_()),
    "x.clamp(min=0)": ("relu", lambda z: z.clamp(min=0)),
    "x.clip(0)": ("relu", lambda z: z.clip(0)),
    "torch.clamp(x, 0)": ("relu", lambda z: torch.clamp(z, 0)),
    "x.clamp_min(0)": ("relu", lambda z: z.clamp_min(0)),
    "x.clamp_min_(0)": ("relu", lambda z: z.clamp_min_(0)),
    "F.threshold": ("relu", lambda z: F.threshold(z, 0, 0)),
    "nn.Threshold": ("threshold", nn.Threshold(0.3, 2.0)),
    "torch.maximum(x, 0)": ("relu", lambda z: torch.maximum(z, ZERO)),
    "torch.maximum(0, x)": ("relu", lambda z: torch.maximum(ZERO, z)),
    "torch.maximum(x, zeros_like)": ("relu", lambda z: torch.maximum(z, torch.zeros_like(z))),
    "torch.max(x, 0)": ("relu", lambda z: torch.max(z, ZERO)),
    "clamp with two edges": ("clamp", lambda z: z.clamp(-0.5, 0.5)),
    "hardtanh": ("hardtanh", nn.Hardtanh()),
    "relu6": ("relu6", nn.ReLU6()),
    "F.relu6": ("relu6", F.relu6),
    "hardswish": ("hardswish", nn.Hardswish()),
    "hardsigmoid": ("hardsigmoid", nn.Hardsigmoid()),
    "softshrink": ("softshrink", nn.Softshrink()),
    "hardshrink": ("hardshrink", nn.Hardshrink()),
    "ELU": ("elu", nn.ELU()),
    "CELU": ("celu", nn.CELU(2.0)),
    "SELU": ("selu", nn.SELU()),
    "GELU": ("gelu", nn.GELU()),
    "GELU tanh": ("gelu", nn.GELU("tanh")),
    "SiLU": ("silu", nn.SiLU()),
    "SiLU in place": ("silu", nn.SiLU(inplace=True)),
    "Mish": ("mish", nn.Mish()),
    "nn.Tanh": ("tanh", nn.Tanh()),
    "torch.tanh": ("tanh", torch.tanh),
    "x.tanh": ("tanh", lambda z: z.tanh()),
    "x.tanh_": ("tanh", lambda z: z.tanh_()),
    "nn.Sigmoid": ("sigmoid", nn.Sigmoid()),
    "torch.sigmoid": ("sigmoid", torch.sigmoid),
    "x.sigmoid": ("sigmoid", lambda z: z.sigmoid()),
    "torch.special.expit": ("sigmoid", torch.special.expit),
    "softplus": ("softplus", nn.Softplus()),
    "softsign": ("softsign", nn.Softsign()),
    "logsigmoid": ("logsigmoid", nn.LogSigmoid()),
}
NOWHERE_FLAT: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "LeakyReLU": ("leaky_relu", nn.LeakyReLU()),
    "LeakyReLU in place": ("leaky_relu", nn.LeakyReLU(0.2, inplace=True)),
    "PReLU": ("prelu", nn.PReLU(6).double()),
    "abs": ("abs", torch.abs),
    "x.abs": ("abs", lambda z: z.abs()),
}


def linear(scale: float = 8.0) -> nn.Linear:
    torch.manual_seed(0)
    one = nn.Linear(4, 6).double()
    with torch.no_grad():
        one.weight.mul_(scale)
        one.bias.copy_(torch.tensor([-60.0, 60.0, 0.0, 1.0, -1.0, 0.0]))
    return one


def open_share(function: Callable[[Tensor], Tensor], z: Tensor, exact: bool) -> np.ndarray:
    """Return per unit the share of entries at which the derivative is not flat, by autograd."""
    z = z.detach().clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(function(z * 1.0).sum(), z)
    grid = torch.linspace(-9, 9, 40001, dtype=torch.float64, requires_grad=True)
    flat = slope.abs() == 0
    if not exact:
        (steep,) = torch.autograd.grad(function(grid * 1.0).sum(), grid)
        flat = slope.abs() < 1e-3 * steep.abs().max()
    return 1 - flat.double().movedim(1, 0).reshape(z.shape[1], -1).mean(dim=1).numpy()


EXACT = "relu threshold clamp hardtanh relu6 hardswish hardsigmoid softshrink hardshrink".split()


@pytest.mark.parametrize("way", WRITTEN)
def test_every_way_of_writing_an_activation_is_seen(way: str) -> None:
    name, function = WRITTEN[way]
    model = Between(linear(), lambda z, _: function(z)).double()
    x = inputs(4)
    found = layer(measured(model, x), "first")
    assert found.activation == name
    z = model.first(x).detach()
    expected = open_share(function, z, name in EXACT)
    np.testing.assert_allclose(found.per_node["active_fraction"], expected, atol=1e-12)
    assert 0 < expected.mean() < 1
    y = function(z.clone())
    np.testing.assert_allclose(found.per_node["output_mean"], y.mean(dim=0).detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        found.per_node["output_std"], y.std(dim=0, correction=0).detach().numpy(), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("way", NOWHERE_FLAT)
def test_activations_that_are_flat_nowhere_have_no_active_fraction(way: str) -> None:
    name, function = NOWHERE_FLAT[way]
    x = inputs(4)
    model = Between(linear(), lambda z, _: function(z)).double()
    found = layer(measured(model, x), "first")
    assert found.activation == name
    assert "active_fraction" not in found.per_node
    y = function(model.first(x).detach().clone()).detach()
    np.testing.assert_allclose(found.per_node["output_mean"], y.mean(dim=0).numpy(), rtol=1e-12)


def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(2, 6, 3, padding=1)


THROUGH: dict[str, Middle] = {
    "nothing": lambda z, m: z,
    "batch norm": lambda z, m: m.norm(z),
    "bias by parameter": lambda z, m: z + m.gain,
    "bias in place": lambda z, m: z.add_(m.shift),
    "bias by buffer, other side": lambda z, m: m.shift + z,
    "minus": lambda z, m: m.shift - z,
    "negative": lambda z, m: -z,
    "number minus": lambda z, m: 0.5 - z,
    "scaled by parameter": lambda z, m: z * m.gain,
    "scaled by what is made of parameters": lambda z, m: z * (m.gain.view(1, -1) ** 2 + 1),
    "divided": lambda z, m: z / (1 + m.gain.abs()),
    "dropout": lambda z, m: m.drop(z),
    "views": lambda z, m: z.unsqueeze(-1).view(len(z), 6, 1).squeeze(-1),
    "transposed": lambda z, m: z.T.t(),
    "cast": lambda z, m: z.contiguous().double(),
    "identity": lambda z, m: nn.Identity()(z),
}
THROUGH_2D: dict[str, Middle] = {
    "batch norm": lambda z, m: m.norm2d(z),
    "bias view": lambda z, m: z + m.gain[:, None, None],
    "bias view, one more": lambda z, m: z * m.gain.view(1, 6, 1, 1),
    "max pool": lambda z, m: F.max_pool2d(z, 2),
    "average pool": lambda z, m: F.avg_pool2d(z, 2),
    "adaptive pool": lambda z, m: F.adaptive_avg_pool2d(z, 2),
    "adaptive max pool": lambda z, m: F.adaptive_max_pool2d(z, 2),
    "batch norm, pool, dropout": lambda z, m: F.dropout2d(F.max_pool2d(m.norm2d(z), 2), training=False),
}
AWAY_2D: dict[str, tuple[Middle, int]] = {
    "flatten": (lambda z, m: z.flatten(1), 1),
    "flatten positions": (lambda z, m: z.flatten(2), 1),
    "permute": (lambda z, m: z.permute(0, 2, 3, 1), 3),
    "permute flat": (lambda z, m: z.flatten(2).transpose(1, 2), 2),
    "movedim": (lambda z, m: z.movedim(1, -1), 3),
    "mT": (lambda z, m: z.mT, 1),
}


@pytest.mark.parametrize("way", THROUGH)
def test_units_are_followed_through(way: str) -> None:
    model = Between(linear(1.0), lambda z, m: THROUGH[way](z, m).relu()).double().eval()
    with torch.no_grad():
        model.first.bias.mul_(0.01)
    x = inputs(4)
    found = layer(measured(model, x), "first")
    assert found.activation == "relu"
    z = THROUGH[way](model.first(x).detach().clone(), model).detach()
    np.testing.assert_allclose(found.per_node["active_fraction"], (z > 0).double().mean(dim=0).numpy())
    np.testing.assert_allclose(found.per_node["output_mean"], z.relu().mean(dim=0).numpy(), rtol=1e-9)


@pytest.mark.parametrize("way", THROUGH_2D)
def test_channels_are_followed_through(way: str) -> None:
    x = inputs(2, 4, 4)
    width = THROUGH_2D[way](torch.zeros(1, 6, 4, 4), Between(conv(), lambda z, m: z)).numel()
    model = Between(conv(), lambda z, m: THROUGH_2D[way](z, m).relu(), width).double().eval()
    found = layer(measured(model, x), "first")
    assert found.activation == "relu"
    z = THROUGH_2D[way](model.first(x), model).detach()
    np.testing.assert_allclose(
        found.per_node["active_fraction"], (z > 0).double().mean(dim=(0, 2, 3)).numpy()
    )


@pytest.mark.parametrize("way", AWAY_2D)
def test_channels_are_found_where_they_went(way: str) -> None:
    middle, axis = AWAY_2D[way]
    x = inputs(2, 4, 4)
    model = Between(conv(), lambda z, m: middle(z, m).relu(), 96).double().eval()
    found = layer(measured(model, x), "first")
    z = model.first(x).detach()
    assert found.activation == "relu", axis
    np.testing.assert_allclose(
        found.per_node["active_fraction"], (z > 0).double().mean(dim=(0, 2, 3)).numpy()
    )


STOPS: dict[str, Middle] = {
    "residual": lambda z, m: (z + z.new_ones(1) * z.detach().roll(1, 0)).relu(),
    "concatenation": lambda z, m: torch.cat([z, z], dim=1)[:, :6].relu(),
    "product of data": lambda z, m: (z * z.roll(1, 1)).relu(),
    "split": lambda z, m: torch.cat([part.relu() for part in z.split(3, dim=1)], dim=1),
    "gate by hand": lambda z, m: z * torch.sigmoid(z),
    "reciprocal": lambda z, m: (m.gain / (z.detach() * 0 + z)).relu(),
    "mixing norm": lambda z, m: (z / z.norm(dim=1, keepdim=True)).relu(),
    "softmax": lambda z, m: z.softmax(dim=1),
    "where": lambda z, m: torch.where(z > 0, z, 0.0),
    "relu and itself": lambda z, m: z.relu() + z,
    "itself and relu": lambda z, m: z + z.relu(),
    "relu both ways": lambda z, m: z.relu() + (-z).relu(),
    "relu both ways, scaled": lambda z, m: (2 * z).relu() - (-3 * z).relu(),
    "two activations": lambda z, m: z.relu() + z.tanh(),
    "two biases": lambda z, m: (z + m.shift).relu() + (z - 5).relu(),
}


@pytest.mark.parametrize("way", STOPS)
def test_units_with_more_than_one_use_have_no_activation_and_are_not_dead(way: str) -> None:
    first = linear()
    with torch.no_grad():
        first.bias[0] = -1e3  # dead if there were a ReLU alone
    model = Between(first, STOPS[way]).double().eval()
    x = inputs(4)
    found = layer(measured(model, x), "first")
    assert found.activation is None
    assert "active_fraction" not in found.per_node
    assert "dead_data_fraction" not in found.per_layer


@pytest.mark.parametrize(
    "way", ["residual", "concatenation", "product of data", "split", "relu and itself", "softmax"]
)
def test_statistics_are_of_the_units_where_they_stop(way: str) -> None:
    model = Between(linear(), STOPS[way]).double().eval()
    x = inputs(4)
    found = layer(measured(model, x), "first")
    z = model.first(x).detach()
    np.testing.assert_allclose(found.per_node["output_mean"], z.mean(dim=0).numpy(), rtol=1e-9)
    np.testing.assert_allclose(found.per_node["output_std"], z.std(dim=0, correction=0).numpy(), rtol=1e-9)
    np.testing.assert_allclose(
        found.per_node["output_range"], (z.amax(dim=0) - z.amin(dim=0)).numpy(), rtol=1e-9
    )


def test_an_addition_after_a_norm_reads_the_norm() -> None:
    model = Between(linear(), lambda z, m: (m.norm(z) + z.detach().roll(1, 0)).relu()).double().eval()
    x = inputs(4)
    found = layer(measured(model, x), "first")
    assert found.activation is None
    np.testing.assert_allclose(found.per_node["output_mean"], model.norm(model.first(x)).mean(dim=0).detach())


def test_the_same_activation_twice_is_one() -> None:
    model = Between(linear(), lambda z, m: z.relu() * 2 + z.relu()).double()
    found = layer(measured(model, inputs(4)), "first")
    assert found.activation == "relu"
    assert found.per_node["active_fraction"][0] == 0


def test_looking_at_the_units_changes_nothing() -> None:
    def middle(z: Tensor, m: Between) -> Tensor:
        assert z.detach().abs().max() > 0
        assert z.shape[1] == 6
        _ = torch.zeros_like(z), (z > 0).any(), z.argmax(), z.data.mean()
        return z.relu()

    found = layer(measured(Between(linear(), middle).double(), inputs(4)), "first")
    assert found.activation == "relu"


def test_a_part_under_no_grad_is_measured_and_gets_no_gradient() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                hidden = self.first(x).relu()
            return self.last(hidden)

    found = measured(Frozen().double(), inputs(4), Level.CURVATURE)
    assert layer(found, "first").activation == "relu"
    assert (layer(found, "first").per_node["lambda_max"] == 0).all()
    assert (layer(found, "first").per_node["output_reach"] == 0).all()
    assert (layer(found, "last").per_node["lambda_max"] > 0).all()


OUTPUTS: dict[str, tuple[Callable[[Tensor], object], bool]] = {
    "itself": (lambda f: f, True),
    "log_softmax": (lambda f: F.log_softmax(f, dim=1), True),
    "sigmoid": (torch.sigmoid, True),
    "relu": (torch.relu, True),
    "squeezed": (lambda f: f[:, :1].squeeze(-1), True),
    "in a mapping": (lambda f: {"logits": f}, True),
    "detached": (lambda f: f.detach() * 1.0, True),
}


@pytest.mark.parametrize("way", OUTPUTS)
def test_the_layer_that_no_layer_follows_is_the_output(way: str) -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> object:
            hidden = self.first(x)
            return OUTPUTS[way][0](self.last(torch.tanh(hidden).detach() + hidden.T.relu().T))

    found = measured(Headed().double(), inputs(4), loss=None)
    assert [one.is_output for one in found.layers] == [False, True]


def test_a_layer_before_a_recurrent_one_is_no_output() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn = nn.Linear(4, 6), nn.LSTM(6, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.first(x))[0][:, -1]

    found = measured(Recurrent().double(), inputs(5, 4))
    assert not layer(found, "first").is_output
