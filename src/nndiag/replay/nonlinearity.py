"""Which torch functions are activations, where each of them is flat, and whether it is piecewise linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FLAT_SLOPE = 1e-3
"""A smooth activation is flat where its slope is below this share of its steepest slope."""

Mask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Nonlinearity:
    """One activation as it was called.

    ``flat(z)`` is the mask of the arguments at which it is flat; ``None`` where it is flat nowhere
    (LeakyReLU, abs). ``exact`` says that flat means a slope of exactly zero (ReLU), not merely a small
    one (tanh).
    """

    name: str
    piecewise_linear: bool
    exact: bool = False
    flat: Mask | None = None


def recognise(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity | None:
    """Return the activation that a call of the torch function ``name`` is, or ``None``.

    Args:
        name: the function's ``__name__`` without the underscore of its in-place form.
        args: positional arguments, the tensor first.
        kwargs: keyword arguments.
    """
    reader = _READERS.get(name)
    return reader(args[1:], kwargs) if reader and args else None


def _argument(rest: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return rest[place] if len(rest) > place else kwargs.get(name, default)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return None if value is None else float(value)


Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], Nonlinearity | None]


def _fixed(activation: Nonlinearity) -> Reader:
    return lambda rest, kwargs: activation


def _smooth(name: str, slope: Callable[[Tensor], Tensor], steepest: float = 1.0) -> Nonlinearity:
    return Nonlinearity(name, piecewise_linear=False, flat=lambda z: slope(z).abs() < FLAT_SLOPE * steepest)


def _clipped(name: str, low: float | None, high: float | None) -> Nonlinearity | None:
    """Return the activation ``min(max(z, low), high)``; ReLU where it is one."""
    bottom, top = -math.inf if low is None else low, math.inf if high is None else high
    if low is None and high is None:
        return None
    is_relu = bottom == 0 and high is None
    return Nonlinearity(
        "relu" if is_relu else name, True, exact=True, flat=lambda z: (z <= bottom) | (z >= top)
    )


def _clamp(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity | None:
    low = _argument(rest, kwargs, 0, "min", None)
    high = _argument(rest, kwargs, 1, "max", None)
    if any(isinstance(edge, Tensor) and edge.numel() != 1 for edge in (low, high)):
        return None
    return _clipped("clamp", _number(low), _number(high))


def _clamp_min(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity | None:
    return _clipped("clamp", _number(_argument(rest, kwargs, 0, "min", None)), None)


def _maximum(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity | None:
    other = _argument(rest, kwargs, 0, "other", None)
    if isinstance(other, Tensor) and other.numel() == 1 and not other.requires_grad:
        return _clipped("maximum", float(other), None)
    return None


def _hardtanh(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity | None:
    low = _argument(rest, kwargs, 0, "min_val", -1.0)
    high = _argument(rest, kwargs, 1, "max_val", 1.0)
    return _clipped("hardtanh", float(low), float(high))


def _threshold(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    edge = float(_argument(rest, kwargs, 0, "threshold", 0.0))
    return Nonlinearity("threshold", True, exact=True, flat=lambda z: z <= edge)


def _leaky(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    slope = float(_argument(rest, kwargs, 0, "negative_slope", 0.01))
    if slope == 0:
        return _RELU
    return Nonlinearity("leaky_relu", True)


def _exponential(name: str) -> Reader:
    def read(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
        alpha = float(_argument(rest, kwargs, 0, "alpha", 1.0)) or 1.0
        scale = alpha if name == "celu" else 1.0
        factor = 1.0 if name == "celu" else abs(alpha)
        return _smooth(name, lambda z: torch.where(z > 0, 1.0, factor * (z.clamp(max=0) / scale).exp()))

    return read


def _softplus(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    beta = float(_argument(rest, kwargs, 0, "beta", 1.0))
    return _smooth("softplus", lambda z: torch.sigmoid(beta * z))


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density


def _silu_slope(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


def _mish_slope(z: Tensor) -> Tensor:
    inner = torch.tanh(F.softplus(z))
    return inner + z * torch.sigmoid(z) * (1 - inner * inner)


_RELU = Nonlinearity("relu", True, exact=True, flat=lambda z: z <= 0)

_READERS: dict[str, Reader] = {
    "relu": _fixed(_RELU),
    "relu6": _fixed(Nonlinearity("relu6", True, exact=True, flat=lambda z: (z <= 0) | (z >= 6))),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "maximum": _maximum,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "leaky_relu": _leaky,
    "prelu": _fixed(Nonlinearity("prelu", True)),
    "rrelu": _fixed(Nonlinearity("rrelu", True)),
    "abs": _fixed(Nonlinearity("abs", True)),
    "absolute": _fixed(Nonlinearity("abs", True)),
    "hardsigmoid": _fixed(Nonlinearity("hardsigmoid", True, exact=True, flat=lambda z: z.abs() >= 3)),
    "hardswish": _fixed(Nonlinearity("hardswish", False, exact=True, flat=lambda z: z <= -3)),
    "elu": _exponential("elu"),
    "celu": _exponential("celu"),
    "selu": _fixed(_smooth("selu", lambda z: torch.where(z > 0, 1.0, 1.6733 * z.clamp(max=0).exp()))),
    "gelu": _fixed(_smooth("gelu", _gelu_slope)),
    "silu": _fixed(_smooth("silu", _silu_slope)),
    "mish": _fixed(_smooth("mish", _mish_slope)),
    "tanh": _fixed(_smooth("tanh", lambda z: 1 - torch.tanh(z) ** 2)),
    "sigmoid": _fixed(_smooth("sigmoid", lambda z: torch.sigmoid(z) * torch.sigmoid(-z), 0.25)),
    "logsigmoid": _fixed(_smooth("logsigmoid", lambda z: torch.sigmoid(-z))),
    "softsign": _fixed(_smooth("softsign", lambda z: (1 + z.abs()) ** -2)),
    "softplus": _softplus,
}
