"""Attention heads: a coarser grouping of the rows of query, key and value projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
_KEY_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_SINGLE = frozenset(
    "q k v query key value q_proj k_proj v_proj q_lin k_lin v_lin to_q to_k to_v wq wk wv".split()
)
_KEYS = frozenset("k v key value k_proj v_proj k_lin v_lin to_k to_v wk wv".split())
_JOINT = frozenset("qkv c_attn in_proj query_key_value to_qkv qkv_proj wqkv".split())


@dataclass(frozen=True)
class Heads:
    """``count`` heads, whose rows are repeated ``outer`` times: three where one layer projects q, k and v."""

    count: int
    outer: int = 1


def heads_of(model: nn.Module) -> Mapping[str, Heads]:
    """Return the heads of every module that is known to hold the projections of an attention, by its path.

    Known are ``nn.MultiheadAttention`` and, by the names in use, projections inside a module that says how many heads
    it has.
    """
    found: dict[str, Heads] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found[path] = Heads(module.num_heads, 3)
            continue
        count = _count(module, _COUNTS)
        if count is None:
            continue
        keys = _count(module, _KEY_COUNTS) or count
        for name, child in module.named_children():
            heads = _projection(name, child, count, keys)
            if heads is not None:
                found[f"{path}.{name}" if path else name] = heads
    return found


def _count(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _projection(name: str, child: nn.Module, count: int, keys: int) -> Heads | None:
    outputs = getattr(child, "out_features", getattr(child, "nf", None))
    if not isinstance(outputs, int):
        return None
    own, outer = (keys if name in _KEYS else count), 3 if name in _JOINT else 1
    known = name in _SINGLE or name in _JOINT
    return Heads(own, outer) if known and outputs % (own * outer) == 0 else None
