"""How many products exact blocks take at most, before any is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from nndiag.measures.exact.applied import positions_of, vectors_of
from nndiag.measures.exact.cost import pass_cost
from nndiag.measures.exact.record import ExactSettings
from nndiag.measures.hvp import HessianProducts
from nndiag.probe.probe import Probe
from nndiag.replay.kinds import Layer

SHOWN = 4
"""Samples that show how often nodes are applied."""


@dataclass(frozen=True)
class Most:
    """Vectors multiplied by a Hessian over the whole probe: how many at most, and how many together."""

    count: int
    at_once: int


def most_products(model: nn.Module, probe: Probe, layers: Sequence[Layer], settings: ExactSettings) -> Most:
    """Return what refining these layers costs at most: all of their nodes, or what ``auto`` may spend.

    Args:
        model: inside ``undisturbed``, after a forward pass.
        probe: samples, targets and loss.
        layers: those to refine.
        settings: the mode, and what it may cost.

    Raises:
        InputError: the probe has no targets.
    """
    HessianProducts(model, probe)  # says at once that targets are missing
    positions = positions_of(model, replace(probe, batch_size=min(SHOWN, len(probe))), layers)
    every = sum(layer.nodes * vectors_of(layer, positions) for layer in layers)
    cost = pass_cost(model, probe, settings.room, settings.batch_size)
    count = every if settings.mode == "hessian" else min(every, int(settings.work / cost.work))
    return Most(count, cost.at_once)
