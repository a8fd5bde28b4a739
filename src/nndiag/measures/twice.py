"""Functions whose second derivative torch has wrong or not at all, done in a way of which it has it right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class TwiceDifferentiable(TorchFunctionMode):
    """A mode under which passes are run that will be differentiated twice.

    ``torch._weight_norm`` (of ``weight_norm``, old and new) is right once; its Hessian on a CPU is not even symmetric
    (torch 2.13). ``F.embedding_bag`` has no second derivative; sums and means of looked-up rows have. Sparse gradients
    of ``F.embedding`` cannot be differentiated again.
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
        if func is F.embedding:
            return _embedding(*args, **dict(kwargs or {}))
        if func is F.embedding_bag:
            return _embedding_bag(*args, **dict(kwargs or {}))
        return func(*args, **dict(kwargs or {}))


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """``g v / ‖v‖``, the norm over all axes but one."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return what ``F.embedding`` does, with gradients that are dense."""
    return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse=False)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return what ``F.embedding_bag`` does: the sum or the mean of the rows of a bag; its own for a maximum."""
    if mode not in ("sum", "mean") or max_norm is not None:
        return F.embedding_bag(
            input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
            include_last_offset, padding_idx,
        )  # fmt: skip
    ids = input.flatten()
    if offsets is None:
        bags, count = (
            torch.arange(len(input), device=ids.device).repeat_interleave(input.shape[1]),
            len(input),
        )
    else:
        count = len(offsets) - int(include_last_offset)
        bags = torch.searchsorted(offsets[:count], torch.arange(len(ids), device=ids.device), right=True) - 1
    counted = torch.ones_like(ids, dtype=weight.dtype)
    if padding_idx is not None:
        counted = (ids != padding_idx % len(weight)).to(weight)
    shares = counted if per_sample_weights is None else counted * per_sample_weights.flatten()
    found = weight.new_zeros(count, weight.shape[1]).index_add(0, bags, shares[:, None] * weight[ids])
    if mode == "sum":
        return found
    return found / counted.new_zeros(count).index_add(0, bags, counted).clamp_min(1)[:, None]
