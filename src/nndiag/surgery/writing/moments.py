"""What an optimiser keeps beside every entry of a parameter, after some entries went and others start afresh.

Entries that remain keep what is theirs. An entry that starts afresh has no momentum, and of what the step is divided
by (Adam's second moment ``v`` and its kin) the median over the living entries of the same tensor. Zero, which ReDo
(Sokar et al. 2023, section 5) writes, is no fresh start where the step counter is shared by the whole tensor: the
correction for bias ``1 - β₂^t`` is spent, so that the first steps would be ``(1 - β₁^k) / √(1 - β₂^k)`` times the
learning rate, 3.2 for k = 1 and over 6 for k between 5 and 25. Where no entry of the tensor lives on, all of it
starts as a new optimiser would: zeros and step 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.surgery.writing.changes import Kept, ParameterChange

Value = Tensor | int | float | bool

DIVISORS = frozenset(
    {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "acc_delta", "step_size"}
)
"""What the step is divided by, or scaled with: positive, and zero only before the first step."""
MEANS = frozenset(
    {"exp_avg", "momentum_buffer", "grad_avg", "prev", "exp_avg_diff", "neg_grad_or_diff", "previous_grad"}
)
"""What carries a direction on: zero where nothing came before."""
_COUNTERS: Mapping[str, float] = {"step": 0, "mu_product": 1}
_SCALARS = frozenset({*_COUNTERS, "eta", "mu"})


@dataclass(frozen=True)
class Followed:
    """``changed`` are new values by their names; ``None`` where the state of this parameter cannot follow, so that it
    must be left out. ``unknown`` are names of which nobody knows what a fresh start would be: they were set to zero
    where they have the parameter's shape, and stay as they are where they have another.
    """

    changed: Mapping[str, Value] | None
    unknown: frozenset[str] = frozenset()


def follow(state: Mapping[str, Value], change: ParameterChange) -> Followed:
    """Return what an optimiser keeps for a parameter after the parameter changed.

    Args:
        state: tensors and numbers by their names, in the parameter's old shape where they are beside its entries.
        change: what became of the parameter.
    """
    beside = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and value.shape == change.before and name not in _SCALARS
    }
    others = {
        name
        for name, value in state.items()
        if isinstance(value, Tensor) and name not in beside and value.dim() and name not in _SCALARS
    }
    if change.shrank and (change.kept is None or others):
        return Followed(None)
    if not change.reset.any():
        if not change.shrank:
            return Followed({})
        return Followed({name: taken(value, change.kept or ()) for name, value in beside.items()})
    moved = {name: taken(value, change.kept or ()) for name, value in beside.items()}
    living = {name: _living(value, change.reset) for name, value in moved.items() if name in DIVISORS}
    afresh = bool(change.reset.all()) or (bool(living) and not any(len(value) for value in living.values()))
    changed: dict[str, Value] = {}
    for name, value in moved.items():
        fill = (
            living[name].median() if name in living and len(living[name]) and not afresh else torch.zeros(())
        )
        if name == "ax":  # an average of the parameter itself
            changed[name] = torch.where(change.reset, change.value.to(value.dtype), value)
        elif name == "step_size" and not (name in living and len(living[name])):
            changed[name] = value
        else:
            changed[name] = torch.where(change.reset, fill.to(value.dtype), value)
    if afresh:
        changed |= {name: _counter(state[name], start) for name, start in _COUNTERS.items() if name in state}
    return Followed(changed, frozenset(others | (moved.keys() - DIVISORS - MEANS - {"ax"})))


def taken(tensor: Tensor, kept: Kept) -> Tensor:
    """Return the entries of a tensor that remain along every axis."""
    for axis, index in enumerate(kept):
        if index is not None:
            tensor = tensor.index_select(axis, index.to(device=tensor.device, dtype=torch.int64))
    return tensor


def _living(value: Tensor, reset: Tensor) -> Tensor:
    """Return what is positive among the entries that do not start afresh."""
    rest = value[~reset].to(torch.float32)
    return rest[rest > 0]


def _counter(value: Value, start: float) -> Value:
    return torch.full_like(value, start) if isinstance(value, Tensor) else type(value)(start)
