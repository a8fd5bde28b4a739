"""How a torch function was called: its plain name, and whether it works in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch._ops import OpOverload

_INPLACE_FLAG = frozenset(
    "relu relu6 leaky_relu elu celu selu silu mish hardtanh hardswish hardsigmoid threshold rrelu dropout".split()
)
_PROPERTIES = {"T": "t", "H": "t", "mT": "mT", "mH": "mT", "data": "detach"}
"""Properties of a tensor that are a tensor: by which function they are the same."""

_ASKED = frozenset(
    "shape dtype device ndim requires_grad is_leaf is_nested is_sparse is_cuda is_cpu layout".split()
)
"""Properties of a tensor that are none."""


def asks(func: Callable[..., Any]) -> bool:
    """Whether a function gives a property that is no tensor, of which nobody needs to take note."""
    return getattr(func, "__name__", "") == "__get__" and getattr(func.__self__, "__name__", "") in _ASKED  # type: ignore[attr-defined]


def plain_name(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, bool]:
    """Return a function's name without the mark of its in-place form, and whether it works in place.

    Args:
        func: the torch function.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """
    name = getattr(func, "__name__", "")
    if isinstance(
        func, OpOverload
    ):  # of an exported graph: aten.relu.default, aten.mean.dim, aten.add_.Tensor
        name = func.overloadpacket.__name__
    if name == "__get__":
        return _PROPERTIES.get(getattr(getattr(func, "__self__", None), "__name__", ""), name), False
    if name.startswith("__"):
        return name, name.startswith("__i") and name != "__invert__"
    flagged = kwargs.get("inplace") is True or (
        name.strip("_") in _INPLACE_FLAG and any(a is True for a in args)
    )
    return name.strip("_"), name.endswith("_") or flagged
