"""Measuring one model on one probe: the passes over the batches, and the record of what they showed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from nndiag.errors import ModelError
from nndiag.measures.activations import ActivationObserver
from nndiag.measures.batchview import layer_uses
from nndiag.measures.capture import Capture
from nndiag.measures.curvature import CurvatureSettings, LayerCurvature, layer_curvature
from nndiag.measures.gradients import GradientSums, influence_seeds
from nndiag.measures.record import layer_record
from nndiag.measures.rows import choose_rows
from nndiag.probe.columns import curvature_columns
from nndiag.probe.probe import Batch, Probe
from nndiag.records.level import Level
from nndiag.records.measured import CurvatureFacts, LayerMeasures, Measured, OptimizerFacts, Timing
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import find_layers, owners, unmeasured
from nndiag.replay.passes import Forward, forward, main_output
from nndiag.replay.separation import Blind, mixed_layers
from nndiag.replay.state import undisturbed

Progress = Callable[[str, int, int], None]
"""Told ``(what is being done, steps done, steps in all)``."""

EXACT_WORK = 2e9
"""Multiplications (columns times those of a forward pass over the probe) up to which all columns are exact."""
DEFAULT_NOISE = 2e-3


@dataclass(frozen=True)
class Plan:
    """What to measure and how.

    ``noise`` is what sampling the lesser columns of the loss curvature may cost in accuracy, as a share of the trace:
    0 takes all of them exactly, ``None`` does so where that is cheap and else allows ``DEFAULT_NOISE``.
    """

    level: Level
    solver: str = "lanczos"
    tolerance: float = 1e-3
    noise: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Update:
    """The update rule with the tensors that belong to it: Adam's second moments by parameter name."""

    facts: OptimizerFacts
    second_moments: Mapping[str, Tensor]
    step: int | None = None

    def preconditioner(self, layer: Layer) -> Tensor | None:
        """Return Adam's ``P = √(v/(1−β₂ᵗ)) + ε`` as ``(nodes, size)``; ``None`` where it is not known."""
        needed = {layer.weight} | ({layer.bias} if layer.bias else set())
        if not self.facts.is_adam or not needed <= self.second_moments.keys():
            return None
        moments = layer.rows(self.second_moments).double().clamp_min(0)
        beta2 = self.facts.betas[1] if self.facts.betas else 0.999
        correction = 1 - beta2**self.step if self.step else 1.0
        return (moments / correction).sqrt() + (self.facts.eps or 1e-8)


class NonFiniteOutputError(ModelError):
    """The model's outputs on the probe are not finite: there is nothing to differentiate."""


class Replay:
    """The sums over the probe that one pass over its batches leaves behind."""

    def __init__(self, model: nn.Module, probe: Probe, plan: Plan) -> None:
        self.model, self.probe, self.plan = model, probe, plan
        self.layers = find_layers(model)
        self.by_weight = owners(model, self.layers)
        self.observer = ActivationObserver(probe.fold_count)
        self.gradients = {layer.name: GradientSums(layer) for layer in self.layers}
        self.captures: dict[str, Capture] = {}
        self.mixed: dict[str, str] = {}
        self.parameter_gradients: dict[str, Tensor] = {}
        self.loss_sum = 0.0
        self.column_trace = self.total_trace = 0.0
        self.piecewise_linear = True
        self.repeated: set[str] = set()
        self.capture_seconds = 0.0
        self.signs = torch.Generator().manual_seed(plan.seed)
        self.row_signs = torch.Generator().manual_seed(plan.seed)

    def run(self, progress: Progress) -> None:
        """Take every batch once."""
        if self.plan.level >= Level.GRADIENTS and len(self.probe) > 1:
            self.mixed = mixed_layers(self.model, self.probe.inputs, self.by_weight, self.signs)
        for batch in self.probe.batches():
            progress("replaying the probe", batch.start, len(self.probe))
            self._batch(batch)
        progress("replaying the probe", len(self.probe), len(self.probe))

    def _batch(self, batch: Batch) -> None:
        self.observer.begin(self.probe.fold_of(batch))
        begun, observed = time.perf_counter(), self.observer.seconds
        seen = forward(self.model, batch.inputs, self.by_weight, self.observer)
        self.capture_seconds += time.perf_counter() - begun - (self.observer.seconds - observed)
        for call in seen.calls:
            self.observer.commit(call.layer, call.reading, call.produced, call.is_output)  # type: ignore[arg-type]
        if self.plan.level >= Level.GRADIENTS and not bool(torch.isfinite(seen.output).all()):
            raise NonFiniteOutputError(
                "model", "its outputs on the probe are not finite", "use --level activations"
            )
        targets = self._targets(seen.output, batch)
        if targets is not None:
            assert self.probe.loss is not None
            self.loss_sum += float(self.probe.loss.per_sample(seen.output.detach(), targets).double().sum())
        if self.plan.level >= Level.GRADIENTS:
            self._gradients(seen, targets)
        if self.plan.level >= Level.CURVATURE:
            begun = time.perf_counter()
            self._curvature(seen, batch, targets)
            self.capture_seconds += time.perf_counter() - begun

    def _targets(self, output: Tensor, batch: Batch) -> Tensor | None:
        if self.probe.loss is None or batch.targets is None:
            return None
        return self.probe.loss.prepare(output.detach(), batch.targets)

    def _gradients(self, seen: Forward, targets: Tensor | None) -> None:
        from_loss = None if targets is None else self._loss_gradients(seen, targets)
        seeds = influence_seeds(seen.output, len(self.probe), self.signs)
        from_outputs = [seen.gradients(seed) for seed in seeds]
        for use in layer_uses(seen, self.mixed):
            self.gradients[use.layer.name].add(
                use,
                use.columns(),
                None if from_loss is None else use.gather(from_loss),
                [use.gather(g) for g in from_outputs],
            )

    def _loss_gradients(self, seen: Forward, targets: Tensor) -> list[Tensor]:
        assert self.probe.loss is not None
        leaf = seen.output.detach().requires_grad_(True)
        (seed,) = torch.autograd.grad(self.probe.loss.per_sample(leaf, targets).sum(), leaf)
        named = list(self.model.named_parameters())
        at_outputs, at_parameters = seen.gradients_and_parameters(seed, [p for _, p in named])
        for (name, parameter), grad in zip(named, at_parameters, strict=True):
            value = torch.zeros_like(parameter) if grad is None else grad
            before = self.parameter_gradients.get(name)
            self.parameter_gradients[name] = value if before is None else before + value
        return at_outputs

    def _curvature(self, seen: Forward, batch: Batch, targets: Tensor | None) -> None:
        loss = self.probe.loss
        assert loss is not None
        columns = curvature_columns(loss, seen.output, targets)
        linear = seen.watch.proof.holds(seen.output, loss.is_cross_entropy)
        self.piecewise_linear = self.piecewise_linear and linear and columns.negative <= 1e-9 * columns.total
        rows = choose_rows(columns.columns, self._noise(seen, len(columns.columns)), self.row_signs)
        self.total_trace += columns.total * len(batch)
        self.column_trace += rows.exact * float(columns.traces.sum()) * len(batch)
        fold_of = self.probe.fold_of(batch)
        self._keep(seen, [seen.gradients(seed) for seed in rows.whole], fold_of)
        for start in range(0, len(rows.samples), self.probe.batch_size):
            part = slice(start, start + self.probe.batch_size)
            picked = rows.samples[part]
            again = forward(self.model, [x[picked] for x in batch.inputs], self.by_weight, Blind())
            self._keep(again, [again.gradients(rows.picked[part])], fold_of[picked])

    def _noise(self, seen: Forward, columns: int) -> float:
        """Return the noise accepted: none where exact columns are cheap."""
        if self.plan.noise is not None:
            return self.plan.noise
        work = sum(call.layer.nodes * call.layer.fan_in * call.positions for call in seen.calls)
        return 0.0 if columns * len(self.probe) * work <= EXACT_WORK else DEFAULT_NOISE

    def _keep(self, seen: Forward, gradients: list[list[Tensor]], folds: Tensor) -> None:
        for use in layer_uses(seen, self.mixed):
            if len(use.places) > 1:
                self.repeated.add(use.layer.name)
            if use.layer.name not in self.captures:
                self.captures[use.layer.name] = Capture(
                    use.layer, len(self.probe), self.probe.fold_count, dense=self.plan.solver == "dense"
                )
            self.captures[use.layer.name].add(use, [use.gather(g) for g in gradients], folds)


def measure(
    model: nn.Module,
    probe: Probe,
    plan: Plan,
    update: Update | None = None,
    progress: Progress = lambda *_: None,
) -> Measured:
    """Measure a model on a probe.

    Args:
        model: with the weights to examine; left exactly as it was.
        probe: samples, targets and loss.
        plan: the level, the solver and its settings.
        update: the update rule, where it is known.
        progress: told what is being done.

    Returns:
        The numbers; what could not be taken is absent.

    Raises:
        ModelError: the model does not run on the probe.
        InputError: targets do not fit the loss.
        NonFiniteOutputError: the outputs are not finite, and gradients were asked for.
    """
    begun = time.perf_counter()
    with undisturbed(model, plan.seed):
        replay = Replay(model, probe, plan)
        replay.run(progress)
        # after the replay, which says in one line what is wrong with a model that does not run
        unit = _forward_backward_seconds(model, probe) if plan.level >= Level.CURVATURE else None
        captured = time.perf_counter()
        curvatures = _curvatures(replay, update, progress)
        ended = time.perf_counter()
        layers = _with_influence(
            [_layer(replay, layer, curvatures.get(layer.name)) for layer in replay.layers]
        )
        left_out = unmeasured(model, replay.layers)
    curved = plan.level >= Level.CURVATURE
    return Measured(
        level=plan.level,
        layers=layers,
        samples=len(probe),
        folds=probe.fold_count,
        has_targets=probe.has_targets,
        loss=replay.loss_sum / len(probe) if probe.has_targets and probe.loss else None,
        gradient_norm=_gradient_norm(replay),
        optimizer=None if update is None else update.facts,
        curvature=_curvature_facts(replay, curvatures, layers) if curved else None,
        timing=Timing(
            unit,
            replay.capture_seconds if curved else None,
            ended - captured if curved else None,
            ended - begun,
        ),
        unmeasured=(*left_out, *sorted(replay.mixed.items())),
    )


def _forward_backward_seconds(model: nn.Module, probe: Probe) -> float:
    """Time one plain forward and backward pass over the probe: the unit of the budgets."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    begun = time.perf_counter()
    for batch in probe.batches():
        output = main_output(model(*batch.inputs))
        if output.requires_grad:
            torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    return time.perf_counter() - begun


def _curvatures(replay: Replay, update: Update | None, progress: Progress) -> dict[str, LayerCurvature]:
    settings = CurvatureSettings(replay.plan.solver, replay.plan.tolerance, replay.plan.seed)
    found = {}
    for done, (name, capture) in enumerate(replay.captures.items()):
        progress(f"curvature of layer {name}", done, len(replay.captures))
        found[name] = layer_curvature(
            capture.blocks(),
            replay.probe.fold_sizes,
            settings,
            None if update is None else update.facts,
            None if update is None else update.preconditioner(capture.layer),
        )
    return found


def _layer(replay: Replay, layer: Layer, curvature: LayerCurvature | None) -> LayerMeasures:
    parameters = dict(replay.model.named_parameters(remove_duplicate=False))
    gradients = {n: g / len(replay.probe) for n, g in replay.parameter_gradients.items()}
    record = layer_record(
        layer,
        layer.rows(parameters).detach(),
        replay.observer.sums.get(layer.name),
        replay.gradients[layer.name] if layer.name not in replay.mixed else None,
        layer.rows(gradients) if layer.weight in gradients else None,
        len(replay.probe),
    )
    if curvature is None:
        return record
    exact = replay.piecewise_linear and layer.name not in replay.repeated
    median = {"lambda_max_median": float(np.median(curvature.per_node["lambda_max"]))}
    return replace(
        record,
        curvature_kind="hessian" if exact else "ggn",
        per_layer={**record.per_layer, **median},
        per_node={**record.per_node, **curvature.per_node},
        per_fold={**record.per_fold, **curvature.per_fold},
    )


def _with_influence(layers: Sequence[LayerMeasures]) -> tuple[LayerMeasures, ...]:
    """Add every node's ``influence``: its share of the tangent kernel's trace over all nodes measured."""
    kernels = [layer.per_node["tangent_kernel"] for layer in layers if "tangent_kernel" in layer.per_node]
    total = float(sum(kernel.sum() for kernel in kernels))
    if not total > 0:
        return tuple(layers)
    return tuple(
        replace(layer, per_node={**layer.per_node, "influence": layer.per_node["tangent_kernel"] / total})
        if "tangent_kernel" in layer.per_node
        else layer
        for layer in layers
    )


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
        coverage=replay.column_trace / replay.total_trace if replay.total_trace > 0 else 1.0,
        solver=replay.plan.solver,
        converged=all(c.converged for c in curvatures.values()),
        products=max((c.products for c in curvatures.values()), default=0),
    )
