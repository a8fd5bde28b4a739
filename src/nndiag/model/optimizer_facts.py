"""The update rule, read from an optimiser's parameter groups and the kind of state that it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from nndiag.records.measured import OptimizerFacts

Group = Mapping[str, object]
ADAMW_DECAY = 0.01
"""The default of AdamW, and not of Adam; older state dicts do not say which of the two wrote them."""


_OTHERS = {
    "nadam": {"momentum_decay"},
    "adamax": {"exp_inf"},
    "rmsprop": {"centered"},
    "adagrad": {"lr_decay", "initial_accumulator_value"},
    "adadelta": {"rho"},
    "asgd": {"lambd", "t0"},
    "rprop": {"etas"},
}
"""Torch's other rules, by entries of groups and states that no rule has but they."""
_RADAM = {"betas", "foreach", "decoupled_weight_decay"}
"""What its groups share with Adam's, which say ``amsgrad`` as well."""


def facts_of(
    groups: Sequence[Group], states: Sequence[Mapping[str, object]]
) -> tuple[OptimizerFacts, tuple[str, ...]]:
    """Return what the groups agree on, and the names of what they differ in (``"lr"``), which is left out.

    ``states`` is only looked at for what it holds, which tells the kinds of optimiser apart.
    """
    read: dict[str, list[Any]] = {
        "lr": [number(group.get("lr")) for group in groups],
        "momentum": [number(group.get("momentum")) for group in groups],
        "betas": [_betas(group.get("betas")) for group in groups],
        "eps": [number(group.get("eps")) for group in groups],
        "weight_decay": [number(group.get("weight_decay")) for group in groups],
        "dampening": [number(group.get("dampening")) for group in groups],
        "nesterov": [_flag(group.get("nesterov")) for group in groups],
    }
    agreed = {key: values[0] for key, values in read.items() if values and len(set(values)) == 1}
    differing = tuple(key for key in read if groups and key not in agreed)
    name = _name(groups, states)
    return OptimizerFacts(name=name, source="checkpoint", **agreed), differing


def facts_in(group: Group, name: str | None) -> OptimizerFacts:
    """Return the facts of one group of the rule of this name."""
    return replace(facts_of([group], [])[0], name=name)


def number(value: object) -> float | None:
    """Return a finite number of at least 0, also from a tensor of one element; ``None`` for anything else."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_meta or value.is_complex():
            return None
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        plain = float(value)
    except OverflowError:
        return None
    return plain if math.isfinite(plain) and plain >= 0 else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _betas(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    first, second = number(value[0]), number(value[1])
    if first is None or second is None or first >= 1 or second >= 1:
        return None
    return first, second


def _name(groups: Sequence[Group], states: Sequence[Mapping[str, object]]) -> str | None:
    """Return ``"sgd"``, ``"adam"``, ``"adamw"``, the name of another rule, or ``None`` where nothing tells."""
    keys = {key for group in groups for key in group} | {key for state in states for key in state}
    other = next((name for name, marks in _OTHERS.items() if marks <= keys), None)
    if other is None and keys >= _RADAM and "amsgrad" not in keys:
        other = "radam"
    if other is not None or any(group.get("maximize") is True for group in groups):
        return other or "ascent"
    if any("exp_avg_sq" in state for state in states) or any("amsgrad" in group for group in groups):
        stated = [group["decoupled_weight_decay"] for group in groups if "decoupled_weight_decay" in group]
        if stated:
            return "adamw" if any(value is True for value in stated) else "adam"
        return (
            "adamw" if any(number(group.get("weight_decay")) == ADAMW_DECAY for group in groups) else "adam"
        )
    kept = any("momentum_buffer" in state for state in states)
    if kept or any("nesterov" in group or "dampening" in group for group in groups):
        return "sgd" if not any("square_avg" in state for state in states) else None
    return None
