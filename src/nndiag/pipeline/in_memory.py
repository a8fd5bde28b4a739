"""A model that is there already, without a file: measured and judged as a checkpoint of it would be."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

import nndiag
from nndiag.checkpoint import Checkpoint
from nndiag.errors import InputError
from nndiag.measures import NonFiniteOutputError, Plan, Update, measure
from nndiag.measures.record import all_finite, weights_only
from nndiag.pipeline.document import diagnosis
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import Measured, OptimizerFacts
from nndiag.records.report import Report
from nndiag.remedies import Goal
from nndiag.replay.layers import find_layers
from nndiag.rules.diagnose import Selection, judge, judge_model


def diagnose_model(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Tensor,
    loss: str | None,
    update: Update | None,
    selection: Selection | None = None,
    goal: Goal = "train",
) -> Report:
    """Return the report of a model as it is, of one checkpoint called after its class.

    Args:
        model: left exactly as it was.
        data: ``(x, y)``, or ``x`` alone.
        loss: by name; chosen by the targets where it is not given.
        update: the update rule, where it is known.
        selection: of the findings.
        goal: what its actions are for.

    Raises:
        InputError: the probe holds no samples, or inputs and targets of different number.
        UsageError: there is no such loss.
    """
    begun = time.perf_counter()
    probe = probe_of(data, loss)
    measured = _measured(model, probe, update)
    measured = replace(measured, timing=replace(measured.timing, total_s=time.perf_counter() - begun))
    chosen = selection or Selection()
    judged, of_model = judge(measured, chosen), judge_model(measured, chosen)
    named = Checkpoint(path=Path(type(model).__name__), format="memory", places=())
    count = sum(p.numel() for p in model.parameters())
    found = diagnosis(named, count, probe, measured, judged, of_model, goal, False)
    return Report(nndiag_version=nndiag.__version__, settings={}, checkpoints=(found,))


def probe_of(data: tuple[Tensor, Tensor] | Tensor, loss: str | None) -> Probe:
    """Return a probe of tensors; without a name of a loss its targets choose one.

    Raises:
        InputError: it holds no samples, or inputs and targets of different number.
        UsageError: there is no such loss.
    """
    x, y = (data, None) if isinstance(data, Tensor) else data
    if not len(x) or (y is not None and len(x) != len(y)):
        samples = f"x has {len(x)} samples" + (f" and y {len(y)}" if y is not None else "")
        raise InputError("probe", samples, "give as many of one as of the other, and some")
    name = loss
    if name is None and y is not None:
        name = "mse" if y.is_floating_point() else "cross_entropy"
    return Probe((x,), y, None if name is None else named_loss(name))


def plain_descent(lr: float | None) -> Update | None:
    """Return the update rule of stochastic gradient descent, ``None`` without a learning rate."""
    return None if lr is None else Update(OptimizerFacts(name="sgd", lr=lr), {}, None)


def _measured(model: nn.Module, probe: Probe, update: Update | None) -> Measured:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not all_finite(parameters):
        return weights_only(find_layers(model), parameters)
    if probe.loss is None:
        level = Level.ACTIVATIONS
    elif probe.loss.curvature_needs_targets and not probe.has_targets:
        level = Level.GRADIENTS
    else:
        level = Level.CURVATURE
    try:
        return measure(model, probe, Plan(level), update)
    except NonFiniteOutputError:
        return measure(model, probe, Plan(Level.ACTIVATIONS), update)
