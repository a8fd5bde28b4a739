"""Multi-head attention with its projections in functions that can be seen.

``F.multi_head_attention_forward`` projects, attends and projects back in one call. Here the projections are functions
of their own, and torch's own code attends, with projections that change nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of ``F.multi_head_attention_forward`` by name."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def projected(given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values as the projections give them.

    An input that serves twice (in self-attention all three are one) is projected once, by the whole weight.
    """
    query, key, value = given["query"], given["key"], given["value"]
    width, bias = given["embed_dim_to_check"], given["in_proj_bias"]
    if given["use_separate_proj_weight"]:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        weights = (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
        parts = [F.linear(x, w) for x, w in zip((query, key, value), weights, strict=True)]
        q, k, v = (p if b is None else p + b for p, b in zip(parts, biases, strict=True))
        return q, k, v
    known: dict[int, Tensor] = {}
    for x in (query, key, value):
        if id(x) not in known:
            known[id(x)] = F.linear(x, given["in_proj_weight"], bias)
    return (
        known[id(query)][..., :width],
        known[id(key)][..., width : 2 * width],
        known[id(value)][..., 2 * width :],
    )


def attend(function: Callable[..., Any], given: Mapping[str, Any], parts: Sequence[Tensor]) -> Any:
    """Attend with what is projected already; the result is not projected back."""
    width = given["embed_dim_to_check"]
    same = torch.eye(width, dtype=parts[0].dtype, device=parts[0].device)
    changed = {
        "query": parts[0], "key": parts[1], "value": parts[2], "in_proj_weight": same.repeat(3, 1),
        "in_proj_bias": None, "use_separate_proj_weight": False, "q_proj_weight": None, "k_proj_weight": None,
        "v_proj_weight": None, "out_proj_weight": same, "out_proj_bias": None,
    }  # fmt: skip
    return function(**{**given, **changed})
