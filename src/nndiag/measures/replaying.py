"""One pass over the batches of a probe, and the sums that it leaves behind: the only place that drives replays."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from nndiag.errors import ModelError
from nndiag.measures.activations import ActivationObserver
from nndiag.measures.batchview import layer_uses
from nndiag.measures.capture import Capture
from nndiag.measures.gradients import GradientSums, influence_seeds
from nndiag.measures.plan import Plan, Progress
from nndiag.measures.rows import choose_rows
from nndiag.probe.columns import curvature_columns
from nndiag.probe.probe import Batch, Probe
from nndiag.records.level import Level
from nndiag.replay.layers import find_layers, owners
from nndiag.replay.passes import Forward, forward
from nndiag.replay.separation import Blind, mixed_layers

ELSEWHERE = "its weight is also used outside the layer's own call, and its blocks would miss that use"
EXACT_WORK = 2e9
"""Multiplications (columns times those of a forward pass over the probe) up to which all columns are exact."""
DEFAULT_NOISE = 2e-3
"""What sampling may cost where all columns are not: a standard deviation, as a share of the trace."""


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
        self.elsewhere: dict[str, str] = {}
        self.parameter_gradients: dict[str, Tensor] = {}
        self.loss_sum = 0.0
        self.column_trace = self.total_trace = 0.0
        self.piecewise_linear = True
        self.repeated: set[str] = set()
        self.capture_seconds = 0.0
        self.sampled = False
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
        for name in seen.watch.used_elsewhere:
            self.elsewhere[name] = ELSEWHERE
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
        for use in layer_uses(seen, {*self.mixed, *self.elsewhere}):
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
        rounding = max(1e-9, 100 * torch.finfo(seen.output.dtype).eps)
        linear = seen.watch.proof.holds(seen.output, loss.is_cross_entropy)
        self.piecewise_linear = (
            self.piecewise_linear and linear and columns.negative <= rounding * columns.total
        )
        noise = self._noise(seen, len(columns.columns))
        self.sampled = self.sampled or noise > 0
        rows = choose_rows(columns.columns, noise, self.row_signs)
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
        for use in layer_uses(seen, {*self.mixed, *self.elsewhere}):
            if len(use.places) > 1:
                self.repeated.add(use.layer.name)
            if use.layer.name not in self.captures:
                self.captures[use.layer.name] = Capture(
                    use.layer, len(self.probe), self.probe.fold_count, dense=self.plan.solver == "dense"
                )
            self.captures[use.layer.name].add(use, [use.gather(g) for g in gradients], folds)
