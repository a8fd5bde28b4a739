"""Where an activation is called flat, its derivative is small, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay.nonlinearity import FLAT_SLOPE, Nonlinearity, recognise

GRID = torch.linspace(-12, 12, 24001, dtype=torch.float64) + 1.7e-5  # off the kinks
FAR = torch.linspace(-80, 80, 16001, dtype=torch.float64) + 1.7e-5

SMOOTH: dict[str, tuple[str, tuple[object, ...], dict[str, object], Callable[[Tensor], Tensor]]] = {
    "elu": ("elu", (), {}, F.elu),
    "elu 3": ("elu", (3.0,), {}, lambda z: F.elu(z, 3.0)),
    "elu small": ("elu", (), {"alpha": 0.2}, lambda z: F.elu(z, 0.2)),
    "celu": ("celu", (), {}, F.celu),
    "celu 2": ("celu", (2.0,), {}, lambda z: F.celu(z, 2.0)),
    "selu": ("selu", (), {}, F.selu),
    "gelu": ("gelu", (), {}, F.gelu),
    "gelu tanh": ("gelu", (), {"approximate": "tanh"}, lambda z: F.gelu(z, approximate="tanh")),
    "silu": ("silu", (), {}, F.silu),
    "mish": ("mish", (), {}, F.mish),
    "tanh": ("tanh", (), {}, torch.tanh),
    "sigmoid": ("sigmoid", (), {}, torch.sigmoid),
    "softplus": ("softplus", (), {}, F.softplus),
    "softplus 5": ("softplus", (5.0,), {}, lambda z: F.softplus(z, 5.0)),
    "softsign": ("softsign", (), {}, F.softsign),
    "logsigmoid": ("log_sigmoid", (), {}, F.logsigmoid),
    "tanhshrink": ("tanhshrink", (), {}, F.tanhshrink),
}
EXACT: dict[str, tuple[str, tuple[object, ...], dict[str, object], Callable[[Tensor], Tensor]]] = {
    "relu": ("relu", (), {}, F.relu),
    "relu6": ("relu6", (), {}, F.relu6),
    "clamp": ("clamp", (-1, 2), {}, lambda z: z.clamp(-1, 2)),
    "clamp max": ("clamp", (), {"max": 1.5}, lambda z: z.clamp(max=1.5)),
    "clamp_min": ("clamp_min", (-2.0,), {}, lambda z: z.clamp_min(-2)),
    "hardtanh": ("hardtanh", (), {}, F.hardtanh),
    "threshold": ("threshold", (1.0, 20.0), {}, lambda z: F.threshold(z, 1.0, 20.0)),
    "hardsigmoid": ("hardsigmoid", (), {}, F.hardsigmoid),
    "hardswish": ("hardswish", (), {}, F.hardswish),
    "softshrink": ("softshrink", (), {}, F.softshrink),
    "hardshrink": ("hardshrink", (0.8,), {}, lambda z: F.hardshrink(z, 0.8)),
    "elu 0": ("elu", (0.0,), {}, F.relu),
    "leaky 0": ("leaky_relu", (0.0,), {}, F.relu),
}
NOWHERE = ("leaky_relu", "prelu", "abs")


def slope(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(function(z).sum(), z)
    return found


def named(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Nonlinearity:
    found = recognise(name, (torch.zeros(1), *args), kwargs)
    assert found is not None
    return found


@pytest.mark.parametrize("case", SMOOTH)
def test_smooth_activations_are_flat_where_their_slope_is_small(case: str) -> None:
    name, args, kwargs, function = SMOOTH[case]
    activation = named(name, args, kwargs)
    assert activation.flat is not None
    assert not activation.exact
    assert not activation.piecewise_linear
    magnitude = slope(function, FAR).abs()
    edge = FLAT_SLOPE * slope(function, GRID).abs().max()
    clear = (magnitude - edge).abs() > 2e-3 * edge
    assert (activation.flat(FAR) == (magnitude < edge))[clear].all()
    assert activation.flat(FAR).any()
    assert not activation.flat(FAR).all()


@pytest.mark.parametrize("case", EXACT)
def test_clipped_activations_are_flat_where_their_slope_is_zero(case: str) -> None:
    name, args, kwargs, function = EXACT[case]
    activation = named(name, args, kwargs)
    assert activation.flat is not None
    assert activation.exact
    expected = slope(function, GRID) == 0
    assert (activation.flat(GRID) == expected).all()
    if activation.edge is not None:
        assert ((activation.edge >= GRID) == expected).all()
        assert function(GRID[expected]).unique().numel() == 1
    else:
        assert not (expected[0] and not expected[-1])


@pytest.mark.parametrize("name", NOWHERE)
def test_some_activations_are_flat_nowhere(name: str) -> None:
    activation = named(name, (), {})
    assert activation.flat is None
    assert activation.piecewise_linear


def test_a_sum_is_no_activation() -> None:
    assert recognise("add", (torch.zeros(1), 1.0), {}) is None
    assert recognise("clamp", (torch.zeros(3), torch.arange(3)), {}) is None
    assert recognise("maximum", (torch.zeros(3), torch.arange(3.0)), {}) is None
