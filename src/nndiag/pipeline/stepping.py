"""Advice about learning rates, tried: one step from the checkpoint, at the present and at the advised rate."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nndiag.measures import Update
from nndiag.measures.moving import Move, Moved, moved_parameters, try_moves
from nndiag.probe.probe import Probe
from nndiag.records.finite import finite
from nndiag.records.report import Diagnosis, Number
from nndiag.remedies.plan import Treatment, plan
from nndiag.remedies.rates import suggest
from nndiag.replay.kinds import Layer
from nndiag.replay.orientation import layers_in_use
from nndiag.replay.state import undisturbed
from nndiag.surgery.proof import replay

Numbers = dict[str, Number]
_RATES = ("lower_lr", "raise_lr")


@dataclass(frozen=True)
class SteppedNodes:
    """What steps did: by place of the node, of all of them together, and why others were not tried."""

    nodes: Mapping[tuple[str, int], Numbers] = field(default_factory=dict)
    together: Numbers | None = None
    why_not: str = ""


def try_rates(
    found: Diagnosis, model: nn.Module, probe: Probe, update: Update | None, seed: int
) -> SteppedNodes:
    """Let every node with such advice take one step of its own, and then all of them.

    A step is ``−α g / P``: ``g`` the gradient of the mean loss over the probe, ``P`` Adam's ``√v̂ + ε`` from the
    checkpoint, 1 for other rules; momentum and weight decay are left out. One step shows whether a rate overshoots, not
    where training at it would lead.

    Args:
        found: what was said of the network, for training on.
        model: left as it is.
        probe: what steps are tried on.
        update: the update rule, where it is known.
        seed: of random numbers.
    """
    wanted = [t for t in plan(found, "train") if t.kind in _RATES and t.index is not None]
    if not wanted:
        return SteppedNodes()
    if update is None or not update.facts.lr:
        return SteppedNodes(why_not="no learning rate is known: give --lr")
    if found.model.loss is None:
        return SteppedNodes(why_not="without a loss there is no step")
    with undisturbed(model, seed):
        layers = {layer.name: layer for layer in layers_in_use(model, probe.inputs)}
    rates = {
        (one.layer, one.kind): one.lr for one in suggest(found, wanted) if one.lr is not None and one.lr > 0
    }
    named = [t for t in wanted if (t.layer, t.kind) in rates and t.layer in layers]
    if not named:
        return SteppedNodes(why_not="no other rate can be named")
    missing = [t for t in named if update.facts.is_adam and update.preconditioner(layers[t.layer]) is None]
    if missing:
        return SteppedNodes(why_not="the checkpoint has no second moments of Adam")
    gradients = replay(model, probe, seed).gradients
    named = [t for t in named if set(layers[t.layer].names) <= gradients.keys()]
    directions = [
        _direction(layers[t.layer], t.index, gradients, update) for t in named if t.index is not None
    ]

    def moves(at: Sequence[float]) -> list[Move]:
        given = zip(named, directions, at, strict=True)
        return [Move(t.layer, t.index, -rate * by) for t, by, rate in given if t.index is not None]

    advised = [rates[t.layer, t.kind] for t in named]
    present = try_moves(model, probe, moves([update.facts.lr] * len(named)), seed)
    after = try_moves(model, probe, moves(advised), seed)
    reaching = _gradients_after(model, probe, moves(advised), named, layers, seed)
    nodes: dict[tuple[str, int], Numbers] = {
        (t.layer, t.index): {
            "loss_before": finite(after.loss),
            "loss_after": finite(one.loss),
            "loss_after_at_present_lr": finite(now.loss),
            "lr": rate,
            "output_change": finite(one.output_change),
            "gradient_after": gradient,
        }
        for t, one, now, rate, gradient in zip(
            named, after.alone, present.alone, advised, reaching, strict=True
        )
        if t.index is not None
    }
    left = "" if len(named) == len(wanted) else "no other rate can be named"
    return SteppedNodes(nodes, _together(present, after, len(named)), left)


def _direction(layer: Layer, index: int, gradients: Mapping[str, Tensor], update: Update) -> Tensor:
    row = layer.rows(gradients)[index]
    divisor = update.preconditioner(layer)
    return row if divisor is None else (row.double() / divisor[index].to(row.device)).to(row)


def _gradients_after(
    model: nn.Module, probe: Probe, moves: Sequence[Move], nodes: Sequence[Treatment],
    layers: Mapping[str, Layer], seed: int,
) -> list[float | None]:  # fmt: skip
    """Return the norm of the gradient that reaches each node once all have moved."""
    moved = copy.deepcopy(model)
    named = dict(moved.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, values in moved_parameters(model, layers, moves).items():
            named[name].copy_(values)
    gradients = replay(moved, probe, seed).gradients
    return [
        finite(float(layers[t.layer].rows(gradients)[t.index].double().norm()))
        if t.index is not None and set(layers[t.layer].names) <= gradients.keys()
        else None
        for t in nodes
    ]


def _together(present: Moved, advised: Moved, count: int) -> Numbers | None:
    if present.together is None or advised.together is None:
        return None
    return {
        "actions": count,
        "loss_before": finite(advised.loss),
        "loss_after": finite(advised.together.loss),
        "loss_after_at_present_lr": finite(present.together.loss),
        "output_change": finite(advised.together.output_change),
    }
