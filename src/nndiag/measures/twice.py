"""Functions whose second derivative torch has wrong, done in a way of which it has it right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class TwiceDifferentiable(TorchFunctionMode):
    """A mode under which passes are run that will be differentiated twice.

    ``torch._weight_norm`` (of ``weight_norm``, old and new) is right once; its Hessian on a CPU is not even symmetric
    (torch 2.13).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function, or what is the same."""
        if getattr(func, "__name__", "") == "_weight_norm":
            return _weight_norm(*args, **dict(kwargs or {}))
        return func(*args, **dict(kwargs or {}))


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """``g v / ‖v‖``, the norm over all axes but one."""
    return v * (g / torch.norm_except_dim(v, 2, dim))
