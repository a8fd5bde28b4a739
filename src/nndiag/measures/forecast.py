"""The plan of a measurement, without carrying it out: replays, bytes, and an estimate of the time."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import nn

from nndiag.measures.collect import scheduled
from nndiag.measures.expected import certificate_forecast, exact_forecast
from nndiag.measures.look import INFLUENCE_PASSES, Look
from nndiag.measures.plan import Plan, Update
from nndiag.measures.replaying import Replay
from nndiag.measures.schedule import STREAM_REPLAYS, Form, Need, Round, Schedule
from nndiag.measures.streaming import Streaming
from nndiag.probe.probe import Probe
from nndiag.records.forecast import Forecast, PartForecast, RoundForecast
from nndiag.records.level import Level
from nndiag.replay.passes import Forward, forward
from nndiag.replay.separation import Blind
from nndiag.replay.state import undisturbed

TIMED = 32
"""Samples of the batch that is timed."""
PRODUCTS = 12
"""Products that a solver is taken to need."""
ALONE = 3
"""Backward passes that Jacobians of single samples take the time of, beside the pass that all samples share."""
KEPT: dict[Form, str] = {
    "outer": "inputs and weights",
    "implicit": "inputs and gradients",
    "rows": "jacobians",
    "whole": "whole blocks",
    "streamed": "nothing",
}


def forecast(
    model: nn.Module,
    probe: Probe,
    plan: Plan,
    update: Update | None = None,
    checkpoints: int = 1,
    certificate: bool = False,
) -> Forecast:
    """Say what ``measure`` would do with these.

    Args:
        model: with the weights to examine; left exactly as it was.
        probe: samples, targets and loss.
        plan: the level, the solver and its settings, the budget.
        update: the update rule, where it is known.
        checkpoints: how many there are, of which this is one.
        certificate: whether the whole model is to be certified after it.

    Raises:
        UsageError: the budget is too small.
        ModelError: the model does not run on the probe.
        InputError: targets do not fit the loss.
        NonFiniteOutputError: the outputs are not finite, and gradients were asked for.
    """
    with undisturbed(model, plan.seed):
        replay = Replay(model, probe, plan)
        look, schedule = scheduled(replay, update)
        passes = [_passes(look, plan.level, place) for place in range(len(schedule.rounds))]
        count = min(TIMED, schedule.batch_size, len(probe))
        there, back = _timed(replay, count)
        seconds = len(probe) * _first_order(replay, count)
        seconds += _seconds(replay, look, schedule, (there, back))
        exact = exact_forecast(replay, schedule)
        of_all = certificate_forecast(replay, update, len(probe) * (there + back)) if certificate else None
    rounds = tuple(_round(one) for one in schedule.rounds)
    return Forecast(
        level=plan.level.label,
        checkpoints=checkpoints,
        samples=len(probe),
        batch_size=min(schedule.batch_size, len(probe)),
        budget_bytes=schedule.budget,
        wanted_bytes=schedule.wanted,
        least_bytes=schedule.least,
        peak_bytes=schedule.bytes,
        replays=sum(one.replays for one in rounds),
        backward_passes=math.ceil(
            sum(_backward(one, n, look) for one, n in zip(rounds, passes, strict=True))
        ),
        seconds=checkpoints * seconds,
        exact=exact,
        certificate=of_all,
        rounds=rounds,
    )


def _round(one: Round) -> RoundForecast:
    parts = tuple(PartForecast(p.layer, p.start, p.stop, KEPT[p.form], p.bytes) for p in one.parts)
    return RoundForecast(STREAM_REPLAYS if one.streamed else 1, one.bytes, parts)


def _passes(look: Look, level: Level, place: int) -> float:
    """Return the backward passes of a round's first replay, a sample."""
    first = INFLUENCE_PASSES if place == 0 and level >= Level.GRADIENTS else 0
    return first + look.passes


def _backward(one: RoundForecast, first: float, look: Look) -> float:
    return first + (one.replays - 1) * look.passes


def _seconds(replay: Replay, look: Look, schedule: Schedule, timed: tuple[float, float]) -> float:
    """Return an estimate of the time that curvature takes.

    Passes as timed on a small batch, the arithmetic of solvers at the rate of the model's.
    """
    there, back = timed
    samples = len(replay.probe)
    rate = 2 * look.work / max(there, 1e-9)
    back *= 1 + ALONE * bool(replay.by_jacobians)
    needs = {need.layer: need for need in look.needs}
    total = 0.0
    for place, one in enumerate(schedule.rounds):
        replays = STREAM_REPLAYS if one.streamed else 1
        forwards = there * (replays * (1 + look.samples) - (place == 0))
        total += samples * (forwards + replays * back * look.passes)
        for part in one.parts:
            need = needs[part.layer]
            total += _operations(need, part.form, samples) * (part.stop - part.start) / need.nodes / rate
    return total


def _operations(need: Need, form: Form, samples: int) -> float:
    """Return the operations of solving for a layer."""
    if form == "whole":
        return samples * need.summing + PRODUCTS * 2 * need.nodes * need.size**2
    return PRODUCTS * samples * need.multiplying


def _timed(replay: Replay, count: int) -> tuple[float, float]:
    """Return the seconds of a forward and a backward pass, a sample; the replay takes note of what they show."""
    inputs = [x[:count] for x in replay.probe.inputs]
    begun = time.perf_counter()
    seen = forward(replay.model, inputs, replay.owners, Blind())
    _wait(seen)
    there = time.perf_counter() - begun
    replay.note(seen)
    begun = time.perf_counter()
    if replay.plan.level >= Level.GRADIENTS:
        seen.gradients(torch.ones_like(seen.output))
        _wait(seen)
    return there / count, (time.perf_counter() - begun) / count


def _first_order(replay: Replay, count: int) -> float:
    """Return the seconds, a sample, of a first replay's forward pass and first-order measures."""
    probe, plan = replay.probe, replay.plan
    targets = None if probe.targets is None else probe.targets[:count]
    few = replace(probe, inputs=tuple(x[:count] for x in probe.inputs), targets=targets, batch_size=count)
    first = Replay(replay.model, few, replace(plan, level=min(plan.level, Level.GRADIENTS)))
    first.begin()
    begun = time.perf_counter()
    first.first(Streaming({}, few.fold_sizes), lambda _: None)
    return (time.perf_counter() - begun) / count


def _wait(seen: Forward) -> None:
    if seen.output.is_cuda:
        torch.cuda.synchronize(seen.output.device)
