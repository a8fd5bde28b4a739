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
    one (tanh). ``edge`` is the argument at and below which it is one constant, where it is flat nowhere else
    (ReLU: 0): there, flat means that nothing gets through.
    """

    name: str
    piecewise_linear: bool
    exact: bool = False
    flat: Mask | None = None
    edge: float | None = None


def recognise(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity | None:
    """Return the activation that a call of the torch function ``name`` is, or ``None``.

    Args:
        name: the function's ``__name__`` without the underscore of its in-place form.
        args: positional arguments, the tensor first.
        kwargs: keyword arguments.
    """
    reader = _READERS.get(name)
    return reader(args[1:], kwargs) if reader and args else None


def in_order(name: str, args: tuple[Any, ...], first: Tensor) -> tuple[Any, ...]:
    """Return the arguments of a call with ``first`` in front, where the function does not mind their order."""
    if name in ("maximum", "max") and len(args) == 2 and args[1] is first:
        return args[::-1]
    return args


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
    """Return a smooth activation from its derivative and the largest magnitude of that."""
    return Nonlinearity(name, piecewise_linear=False, flat=lambda z: slope(z).abs() < FLAT_SLOPE * steepest)


def _clipped(name: str, low: float | None, high: float | None) -> Nonlinearity | None:
    """Return the activation ``min(max(z, low), high)``; ReLU and ReLU6 where it is one."""
    bottom, top = -math.inf if low is None else low, math.inf if high is None else high
    if low is None and high is None:
        return None
    if high is None:
        return _rectifier("relu" if bottom == 0 else name, bottom)
    called = "relu6" if (bottom, top) == (0, 6) else name
    return Nonlinearity(called, True, exact=True, flat=lambda z: (z <= bottom) | (z >= top))


def _rectifier(name: str, edge: float) -> Nonlinearity:
    return Nonlinearity(name, True, exact=True, flat=lambda z: z <= edge, edge=edge)


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
    if not isinstance(other, Tensor) or other.requires_grad or other.numel() == 0:
        return None
    edge = other.flatten()[0]
    return _clipped("maximum", float(edge), None) if bool((other == edge).all()) else None


def _hardtanh(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity | None:
    low = _argument(rest, kwargs, 0, "min_val", -1.0)
    high = _argument(rest, kwargs, 1, "max_val", 1.0)
    return _clipped("hardtanh", float(low), float(high))


def _threshold(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    edge = float(_argument(rest, kwargs, 0, "threshold", 0.0))
    value = float(_argument(rest, kwargs, 1, "value", 0.0))
    return _rectifier("relu" if edge == value == 0 else "threshold", edge)


def _leaky(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    slope = float(_argument(rest, kwargs, 0, "negative_slope", 0.01))
    return _RELU if slope == 0 else Nonlinearity("leaky_relu", True)


def _shrink(name: str) -> Reader:
    def read(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
        width = float(_argument(rest, kwargs, 0, "lambd", 0.5))
        return Nonlinearity(name, True, exact=True, flat=lambda z: z.abs() <= width)

    return read


def _elu(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    alpha = float(_argument(rest, kwargs, 0, "alpha", 1.0))
    if alpha == 0:
        return _RELU
    return _smooth("elu", _exponential_slope(alpha, 1.0), max(1.0, abs(alpha)))


def _celu(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    alpha = float(_argument(rest, kwargs, 0, "alpha", 1.0))
    return _smooth("celu", _exponential_slope(1.0, alpha))


def _exponential_slope(factor: float, scale: float) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.where(z > 0, 1.0, factor * (z.clamp(max=0) / scale).exp())


def _softplus(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    beta = float(_argument(rest, kwargs, 0, "beta", 1.0))
    return _smooth("softplus", lambda z: torch.sigmoid(beta * z))


def _gelu(rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Nonlinearity:
    by_tanh = kwargs.get("approximate") == "tanh"
    return _smooth("gelu", _gelu_by_tanh_slope if by_tanh else _gelu_slope, 1.129)


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density


def _gelu_by_tanh_slope(z: Tensor) -> Tensor:
    inner = torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    outer = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
    return 0.5 * (1 + inner) + 0.5 * z * (1 - inner * inner) * outer


def _silu_slope(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 + z * (1 - gate))


def _mish_slope(z: Tensor) -> Tensor:
    inner = torch.tanh(F.softplus(z))
    return inner + z * torch.sigmoid(z) * (1 - inner * inner)


_RELU = _rectifier("relu", 0.0)
_TANH = _smooth("tanh", lambda z: 1 - torch.tanh(z) ** 2)
_SIGMOID = _smooth("sigmoid", lambda z: torch.sigmoid(z) * torch.sigmoid(-z), 0.25)
_LOG_SIGMOID = _smooth("logsigmoid", lambda z: torch.sigmoid(-z))
_SELU_ALPHA = 1.6732632423543772

_READERS: dict[str, Reader] = {
    "relu": _fixed(_RELU),
    "relu6": lambda rest, kwargs: _clipped("relu6", 0.0, 6.0),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "maximum": _maximum,
    "max": _maximum,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "leaky_relu": _leaky,
    "prelu": _fixed(Nonlinearity("prelu", True)),
    "rrelu": _fixed(Nonlinearity("rrelu", True)),
    "abs": _fixed(Nonlinearity("abs", True)),
    "absolute": _fixed(Nonlinearity("abs", True)),
    "softshrink": _shrink("softshrink"),
    "hardshrink": _shrink("hardshrink"),
    "hardsigmoid": _fixed(Nonlinearity("hardsigmoid", True, exact=True, flat=lambda z: z.abs() >= 3)),
    "hardswish": _fixed(Nonlinearity("hardswish", False, exact=True, flat=lambda z: z <= -3, edge=-3.0)),
    "elu": _elu,
    "celu": _celu,
    "selu": _fixed(_smooth("selu", _exponential_slope(_SELU_ALPHA, 1.0), _SELU_ALPHA)),
    "gelu": _gelu,
    "silu": _fixed(_smooth("silu", _silu_slope, 1.0998)),
    "mish": _fixed(_smooth("mish", _mish_slope, 1.0885)),
    "tanh": _fixed(_TANH),
    "tanhshrink": _fixed(_smooth("tanhshrink", lambda z: torch.tanh(z) ** 2)),
    "sigmoid": _fixed(_SIGMOID),
    "special_expit": _fixed(_SIGMOID),
    "logsigmoid": _fixed(_LOG_SIGMOID),
    "log_sigmoid": _fixed(_LOG_SIGMOID),
    "softsign": _fixed(_smooth("softsign", lambda z: (1 + z.abs()) ** -2)),
    "softplus": _softplus,
}
