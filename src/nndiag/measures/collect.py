"""Measuring one model on one probe: the passes over the batches, and the record of what they showed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from nndiag.measures.budget import budget_of
from nndiag.measures.curvature import CurvatureSettings, LayerCurvature
from nndiag.measures.detached import with_forward_effect
from nndiag.measures.exact import ExactSettings, Refinement, merged, refine
from nndiag.measures.jitter import with_jitter
from nndiag.measures.layer_records import layer_records, proved, with_rates
from nndiag.measures.look import Look, look_at
from nndiag.measures.plan import Plan, Progress, Update
from nndiag.measures.record import with_class_samples
from nndiag.measures.replaying import ChangingUsesError, Replay
from nndiag.measures.returning import with_returns
from nndiag.measures.said import not_measured, sentences
from nndiag.measures.schedule import Schedule, make_schedule
from nndiag.measures.solving import Solving, fine_tolerance, weights
from nndiag.measures.stages import Stages
from nndiag.measures.weights import numbers
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import CurvatureFacts, Floats, LayerMeasures, Mask, Measured, Timing
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import unmeasured
from nndiag.replay.passes import main_output
from nndiag.replay.state import undisturbed

Preferring = Callable[[Measured], Mapping[str, Floats]]
"""Returns from the numbers known so far of which nodes, by layer, exact curvature is wanted first: larger numbers
first, zero for no wish."""


def measure(
    model: nn.Module,
    probe: Probe,
    plan: Plan,
    update: Update | None = None,
    progress: Progress = lambda *_: None,
    preferred: Preferring = lambda _: {},
) -> Measured:
    """Measure a model on a probe.

    Args:
        model: with the weights to examine; left exactly as it was.
        probe: samples, targets and loss.
        plan: the level, the solver and its settings.
        update: the update rule, where it is known.
        progress: told what is being done.
        preferred: asked where not all nodes can be refined by exact products.

    Returns:
        The numbers; what could not be taken is absent.

    Raises:
        ModelError: the model does not run on the probe.
        InputError: targets do not fit the loss.
        NonFiniteOutputError: the outputs are not finite, and gradients were asked for.
    """
    begun = time.perf_counter()
    with undisturbed(model, plan.seed):
        one_by_one: frozenset[str] = frozenset()
        while True:
            replay = Replay(model, probe, plan, one_by_one)
            look, schedule = scheduled(replay, update)
            stages = Stages(
                progress, [*weights(schedule.rounds), *([1.0] if plan.curvature != "ggn" else [])]
            )
            solving = Solving(replay, look, schedule, update, stages)
            try:
                solving.run()
                break
            except ChangingUsesError as error:
                one_by_one |= error.layers
        # after the replay, which says in one line what is wrong with a model that does not run
        unit = _forward_backward_seconds(replay) if plan.level >= Level.CURVATURE else None
        begun_refining = time.perf_counter()
        curvatures = solving.found
        stages.begin()

        def first() -> Mapping[str, Floats]:
            layers = layer_records(replay, curvatures, {}, Refinement())
            return preferred(_measured(replay, layers, curvatures, update))

        refinement = _refined(replay, schedule, curvatures, update, stages.tell, first)
        exact = _take_in(curvatures, refinement, replay)
        ended = time.perf_counter()
        layers = with_rates(replay, layer_records(replay, curvatures, exact, refinement), update)
        layers = with_returns(replay, with_forward_effect(replay, layers), update)
        layers = with_jitter(replay, layers)
        left_out = (*unmeasured(model, replay.layers), *not_measured(replay, exact))
    curved = plan.level >= Level.CURVATURE
    return replace(
        _measured(replay, layers, curvatures, update),
        timing=Timing(
            unit,
            replay.capture_seconds if curved else None,
            solving.seconds + ended - begun_refining if curved else None,
            ended - begun,
        ),
        unmeasured=left_out,
        notes=(
            *sentences(replay, layers),
            *(() if refinement.note is None else (refinement.note,)),
        ),
    )


def _measured(
    replay: Replay,
    layers: Sequence[LayerMeasures],
    curvatures: Mapping[str, LayerCurvature],
    update: Update | None,
) -> Measured:
    """Put the numbers of the layers together with those of the network."""
    probe, level, predictions = replay.probe, replay.plan.level, replay.predictions.record()
    return Measured(
        level=level,
        layers=tuple(with_class_samples(layer, predictions) for layer in layers),
        samples=len(probe),
        folds=probe.fold_count,
        has_targets=probe.has_targets,
        loss=replay.loss_sum / len(probe) if probe.has_targets and probe.loss else None,
        gradient_norm=_gradient_norm(replay),
        optimizer=None if update is None else update.facts,
        curvature=_curvature_facts(replay, curvatures, layers) if level >= Level.CURVATURE else None,
        predictions=predictions,
    )


def _forward_backward_seconds(replay: Replay) -> float:
    """Time one plain forward and backward pass over the probe: the unit of the budgets."""
    model = replay.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    begun = time.perf_counter()
    for part in (part for batch in replay.probe.batches() for part in batch.split(replay.part_size)):
        output = main_output(model(*part.inputs))
        if output.requires_grad:
            torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    return time.perf_counter() - begun


def scheduled(replay: Replay, update: Update | None) -> tuple[Look, Schedule]:
    """Look at the first samples, and decide how the budget of memory is held.

    Raises:
        UsageError: it is too small.
    """
    seen = replay.begin()
    begun = time.perf_counter()
    solvers = 1 if update is None or not update.facts.is_adam else 2
    look = look_at(replay, seen, solvers)
    device = next(replay.model.parameters()).device
    asked = replay.plan.memory_budget is not None
    schedule = make_schedule(look.needs, look.setting, budget_of(replay.plan, device), asked)
    replay.capture_seconds += time.perf_counter() - begun
    return look, schedule


def _refined(
    replay: Replay,
    schedule: Schedule,
    curvatures: Mapping[str, LayerCurvature],
    update: Update | None,
    progress: Progress,
    first: Callable[[], Mapping[str, Floats]],
) -> Refinement:
    """Return exact curvature of nodes of the layers where Gauss-Newton blocks are not proved to be exact."""
    plan = replay.plan
    if plan.level < Level.CURVATURE or plan.curvature == "ggn":
        return Refinement()
    layers, settings = smooth_layers(replay), exact_settings(replay, schedule)
    # the same samples, as many at a time as the budget lets through
    probe = replace(replay.probe, batch_size=replay.part_size)
    seen = {name: numbers(counts) > 0 for name, counts in replay.lookups.items()}
    return refine(replay.model, probe, layers, curvatures, settings, update, seen, first, progress)


def smooth_layers(replay: Replay) -> list[Layer]:
    """Return the layers that a replay reached and of which Gauss-Newton blocks are not proved to be exact."""
    return [one for one in replay.layers if one.name in replay.reached and not proved(replay, one.name)]


def exact_settings(replay: Replay, schedule: Schedule) -> ExactSettings:
    """Return how exact blocks are made."""
    plan = replay.plan
    assert plan.curvature != "ggn"
    tolerance = fine_tolerance(replay) if plan.tolerance is None else plan.tolerance
    return ExactSettings(
        plan.curvature,
        CurvatureSettings(plan.solver, tolerance, plan.seed),
        room=schedule.budget // 4,
        batch_size=replay.probe.batch_size,
    )


def _take_in(
    curvatures: dict[str, LayerCurvature], refinement: Refinement, replay: Replay
) -> dict[str, Mask]:
    """Put exact numbers in the places of Gauss-Newton ones; return by layer the mask of the nodes that have them."""
    nodes = {layer.name: layer.nodes for layer in replay.layers}
    masks = {}
    for name, one in refinement.layers.items():
        both, masks[name] = merged(curvatures.get(name), one, nodes[name])
        if both is not None:
            curvatures[name] = both
    return masks


def _gradient_norm(replay: Replay) -> float | None:
    if not replay.parameter_gradients:
        return None
    squares = sum(float(g.double().square().sum()) for g in replay.parameter_gradients.values())
    return float(squares**0.5) / len(replay.probe)


def _curvature_facts(
    replay: Replay, curvatures: Mapping[str, LayerCurvature], layers: Sequence[LayerMeasures]
) -> CurvatureFacts:
    kinds = {layer.curvature_kind for layer in layers if layer.curvature_kind}
    return CurvatureFacts(
        kind=kinds.pop() if len(kinds) == 1 else "mixed",
        coverage=min(1.0, replay.exact_trace / replay.total_trace) if replay.total_trace > 0 else 1.0,
        solver=replay.plan.solver,
        converged=all(c.converged for c in curvatures.values()),
        products=max((c.products for c in curvatures.values()), default=0),
        negative=replay.negative_share,
    )
