"""One pass over the batches of a probe, and the sums that it leaves behind: the only place that drives replays."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nndiag.errors import ModelError
from nndiag.measures.activations import ActivationObserver
from nndiag.measures.batchview import LayerUse, layer_uses
from nndiag.measures.capture import Capture
from nndiag.measures.gradients import GradientSums, influence_seeds
from nndiag.measures.plan import Plan, Progress
from nndiag.measures.seeds import Seeds
from nndiag.probe.curvature import loss_factor
from nndiag.probe.probe import Batch, Probe
from nndiag.records.level import Level
from nndiag.replay.jacobians import Rows, SamplesMixedError, sample_jacobians
from nndiag.replay.kinds import Layer, Samples
from nndiag.replay.layers import find_layers, owners
from nndiag.replay.orientation import unit_axes
from nndiag.replay.passes import Forward, forward
from nndiag.replay.separation import Blind, separation

CHANGING = "some batches use it in ways that the first samples did not show"
EXACT_WORK = 2e9
"""Multiplications (columns times those of a forward pass over the probe) up to which all columns are exact."""
EXACT_COLUMNS = 64
"""Columns up to which that may be: a backward pass has a cost of its own, however small the network."""
DEFAULT_NOISE = 2e-3
"""What sampling may cost where all columns are not: a standard deviation, as a share of the trace."""


class NonFiniteOutputError(ModelError):
    """The model's outputs on the probe are not finite: there is nothing to differentiate."""


class Replay:
    """The sums over the probe that one pass over its batches leaves behind."""

    def __init__(self, model: nn.Module, probe: Probe, plan: Plan) -> None:
        self.model, self.probe, self.plan = model, probe, plan
        self.layers = find_layers(model, plan.granularity, unit_axes(model, probe.inputs))
        self.owners = owners(model, self.layers)
        self.observer = ActivationObserver(probe.fold_count)
        self.gradients = {layer.name: GradientSums(layer) for layer in self.layers}
        self.captures: dict[str, Capture] = {}
        self.samples: Mapping[str, Sequence[Samples]] = {}
        self.left_out: dict[str, str] = {}
        self.by_jacobians: dict[str, Layer] = {}
        self.reached: set[str] = set()
        self.lookups: dict[str, Tensor] = {}
        self.parameter_gradients: dict[str, Tensor] = {}
        self.loss_sum = 0.0
        self.exact_trace = self.total_trace = 0.0
        self.piecewise_linear = True
        self.not_linear: set[str] = set()
        self.capture_seconds = 0.0
        self.sampled = False
        self.signs = torch.Generator().manual_seed(plan.seed)
        self.row_signs = torch.Generator().manual_seed(plan.seed)

    def run(self, progress: Progress) -> None:
        """Take every batch once."""
        if self.plan.level >= Level.GRADIENTS:
            self._separate()
        for batch in self.probe.batches():
            progress("replaying the probe", batch.start, len(self.probe))
            self._batch(batch)
        progress("replaying the probe", len(self.probe), len(self.probe))

    def apart(self, layer: Layer) -> bool:
        """Whether the rows of a layer's output are the samples, in their order."""
        known = self.samples.get(layer.name, ())
        return layer.name not in self.left_out and all(s.before == 1 for s in known)

    def _separate(self) -> None:
        found = separation(self.model, self.probe.inputs, self.owners, self.signs)
        self.samples = found.samples
        self.by_jacobians = {layer.name: layer for layer in self.layers if layer.name in found.alone}
        self.left_out = dict(found.left_out)

    def _batch(self, batch: Batch) -> None:
        self.observer.begin(self.probe.fold_of(batch))
        begun, observed = time.perf_counter(), self.observer.seconds
        seen = forward(self.model, batch.inputs, self.owners, self.observer)
        self.capture_seconds += time.perf_counter() - begun - (self.observer.seconds - observed)
        self._note_uses(seen)
        if self.plan.level >= Level.GRADIENTS and not bool(torch.isfinite(seen.output).all()):
            raise NonFiniteOutputError(
                "model", "its outputs on the probe are not finite", "use --level activations"
            )
        targets = self._targets(seen.output, batch)
        if targets is not None:
            assert self.probe.loss is not None
            self.loss_sum += float(self.probe.loss.per_sample(seen.output.detach(), targets).double().sum())
        if self.plan.level >= Level.GRADIENTS:
            self._gradients(seen, batch, targets)
        if self.plan.level >= Level.CURVATURE:
            begun = time.perf_counter()
            self._curvature(seen, batch, targets)
            self.capture_seconds += time.perf_counter() - begun

    def _note_uses(self, seen: Forward) -> None:
        """Take note of what the forward pass showed of the layers."""
        self.reached |= seen.watch.used_elsewhere
        self.not_linear |= seen.watch.not_linear
        if self.plan.level >= Level.GRADIENTS:
            for name in seen.watch.used_elsewhere - self.by_jacobians.keys():
                self.left_out[name] = CHANGING
        for call in seen.calls:
            self.reached.add(call.layer.name)
            if call.reading is not None:
                self.observer.commit(call.layer, call.reading, call.produced, call.is_output)  # type: ignore[arg-type]
        for use in layer_uses(seen, self.samples, ()):
            self._count_lookups(use)

    def _count_lookups(self, use: LayerUse) -> None:
        counts = [share.kind.lookups(share) for share in use.shares]
        total = None
        if all(count is not None for count in counts):
            total = torch.stack([count for count in counts if count is not None]).sum(dim=0)
        if total is not None:
            before = self.lookups.get(use.layer.name)
            self.lookups[use.layer.name] = total if before is None else before + total

    def _targets(self, output: Tensor, batch: Batch) -> Tensor | None:
        if self.probe.loss is None or batch.targets is None:
            return None
        return self.probe.loss.prepare(output.detach(), batch.targets)

    def _uses(self, seen: Forward) -> list[LayerUse]:
        return layer_uses(seen, self.samples, {*self.left_out, *self.by_jacobians})

    def _gradients(self, seen: Forward, batch: Batch, targets: Tensor | None) -> None:
        loss_seed = None if targets is None else self._loss_seed(seen.output, targets)
        from_loss = None if loss_seed is None else self._loss_gradients(seen, loss_seed)
        seeds = influence_seeds(seen.output, len(self.probe), self.signs)
        from_outputs = [seen.gradients(seed) for seed in seeds]
        for use in self._uses(seen):
            self.gradients[use.layer.name].add(
                use,
                use.inputs(),
                None if from_loss is None else use.gather(from_loss),
                [use.gather(g) for g in from_outputs],
            )
        every = seeds if loss_seed is None else [loss_seed, *seeds]
        for _, rows in self._jacobians(batch.inputs, seen.output, every):
            for name, own in rows.items():
                of_loss = None if loss_seed is None else own[0]
                self.gradients[name].add_jacobians(of_loss, own[len(every) - len(seeds) :].unbind())

    def _loss_seed(self, output: Tensor, targets: Tensor) -> Tensor:
        assert self.probe.loss is not None
        leaf = output.detach().requires_grad_(True)
        (seed,) = torch.autograd.grad(self.probe.loss.per_sample(leaf, targets).sum(), leaf)
        return seed

    def _loss_gradients(self, seen: Forward, seed: Tensor) -> list[Tensor]:
        named = list(self.model.named_parameters())
        at_outputs, at_parameters = seen.gradients_and_parameters(seed, [p for _, p in named])
        for (name, parameter), grad in zip(named, at_parameters, strict=True):
            value = torch.zeros_like(parameter) if grad is None else grad
            value = value.to_dense() if value.is_sparse else value
            before = self.parameter_gradients.get(name)
            self.parameter_gradients[name] = value if before is None else before + value
        return at_outputs

    def _curvature(self, seen: Forward, batch: Batch, targets: Tensor | None) -> None:
        loss = self.probe.loss
        assert loss is not None
        plan = self.plan
        factor = loss_factor(loss, seen.output, targets, plan.coverage)
        rounding = max(1e-9, 100 * torch.finfo(seen.output.dtype).eps)
        linear = seen.watch.proof.holds(seen.output, loss.class_axis)
        self.piecewise_linear = (
            self.piecewise_linear and linear and factor.negative <= rounding * factor.total
        )
        noise = self._noise(seen, factor.weights.shape[1])
        self.sampled = self.sampled or noise > 0
        seeds = Seeds(factor, noise, self.row_signs, coverage=plan.coverage, limit=plan.passes)
        self.total_trace += factor.total * len(batch)
        self.exact_trace += seeds.exact * factor.total * len(batch)
        fold_of = self.probe.fold_of(batch)
        self._keep(seen, batch.inputs, [seed.values for seed in seeds.whole()], fold_of)
        for seed in seeds.picked(self.probe.batch_size):
            some = [x[seed.samples] for x in batch.inputs]
            again = forward(self.model, some, self.owners, Blind())
            self._keep(again, some, [seed.values], fold_of[seed.samples])

    def _noise(self, seen: Forward, columns: int) -> float:
        """Return the noise accepted: none where exact columns are cheap."""
        if self.plan.noise is not None:
            return self.plan.noise
        batch = seen.output.shape[0]
        work = sum(
            math.prod(call.shape) / batch * call.layer.fan_in for call in seen.calls if call.use is not None
        )
        cheap = columns <= EXACT_COLUMNS and columns * len(self.probe) * work <= EXACT_WORK
        return 0.0 if cheap else DEFAULT_NOISE

    def _keep(self, seen: Forward, inputs: Sequence[Tensor], seeds: Sequence[Tensor], folds: Tensor) -> None:
        gradients = [seen.gradients(seed) for seed in seeds]
        for use in self._uses(seen):
            self._capture(use.layer).add(use, [use.gather(g) for g in gradients], folds)
        for part, rows in self._jacobians(inputs, seen.output, seeds):
            for name, own in rows.items():
                self._capture(self.by_jacobians[name]).add_jacobians(own, folds[part])

    def _capture(self, layer: Layer) -> Capture:
        if layer.name not in self.captures:
            self.captures[layer.name] = Capture(
                layer, len(self.probe), self.probe.fold_count, dense=self.plan.solver == "dense"
            )
        return self.captures[layer.name]

    def _jacobians(
        self, inputs: Sequence[Tensor], output: Tensor, seeds: Sequence[Tensor]
    ) -> Iterator[tuple[slice, Rows]]:
        """Yield Jacobians of the layers that no kind can treat; nothing where there are none."""
        layers = [layer for layer in self.by_jacobians.values() if layer.name not in self.left_out]
        if not layers or not seeds:
            return
        try:
            yield from sample_jacobians(self.model, layers, inputs, output, torch.stack(list(seeds)))
        except SamplesMixedError as error:
            for layer in layers:
                self.left_out[layer.name] = str(error)
                self.captures.pop(layer.name, None)
