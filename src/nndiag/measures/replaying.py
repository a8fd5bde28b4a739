"""Passes over the batches of a probe, and the sums that the first leaves behind: the only place that drives replays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nndiag.errors import ModelError
from nndiag.measures.activations import ActivationObserver
from nndiag.measures.batchview import LayerUse, layer_uses
from nndiag.measures.folds import FoldRows
from nndiag.measures.gradients import GradientSums, influence_seeds
from nndiag.measures.plan import Plan
from nndiag.measures.predictions import PredictionSums
from nndiag.measures.receivers import Receiver
from nndiag.measures.sampling import Sampling, sampling_of
from nndiag.measures.seeds import Seeds
from nndiag.measures.shown import Shown
from nndiag.measures.signs import SampleSigns
from nndiag.probe.curvature import loss_factor
from nndiag.probe.probe import Batch, Probe
from nndiag.records.level import Level
from nndiag.replay.jacobians import Rows, SamplesMixedError, sample_jacobians
from nndiag.replay.kinds import Layer, Samples
from nndiag.replay.layers import find_layers, owners
from nndiag.replay.lookups import Taken
from nndiag.replay.orientation import unit_axes
from nndiag.replay.passes import Forward, forward, main_output
from nndiag.replay.retrace import Retrace
from nndiag.replay.separation import FIRST, Blind, separation, strays


class NonFiniteOutputError(ModelError):
    """The model's outputs on the probe are not finite: there is nothing to differentiate."""


class ChangingUsesError(Exception):
    """Some batches use ``layers`` in ways that the first samples did not show: samples are to be run one by one."""

    def __init__(self, layers: frozenset[str]) -> None:
        super().__init__(*sorted(layers))
        self.layers = layers


class Replay:
    """The sums over the probe that a first replay leaves behind, and as many replays after it as are wanted.

    A batch of the probe is passed through in parts of ``part_size`` samples, all at once by default. The seeds of its
    passes are those of the whole batch, so that neither the parts nor a further replay change anything. The gradients
    of ``held_passes`` passes of a part are held at once.
    """

    def __init__(
        self, model: nn.Module, probe: Probe, plan: Plan, one_by_one: frozenset[str] = frozenset()
    ) -> None:
        self.model, self.probe, self.plan = model, probe, plan
        self.layers = find_layers(model, plan.granularity, unit_axes(model, probe.inputs))
        self.owners = owners(model, self.layers)
        self.observer = ActivationObserver(probe.fold_count)
        self.predictions = PredictionSums(probe.loss)
        self.gradients = {layer.name: GradientSums(layer) for layer in self.layers}
        self.samples: Mapping[str, Sequence[Samples]] = {}
        self.left_out: dict[str, str] = {}
        self.by_jacobians: dict[str, Layer] = {}
        self.reached: set[str] = set()
        self.lookups: dict[str, Tensor] = {}
        self._always: set[str] = set()
        self.parameter_gradients: dict[str, Tensor] = {}
        self.loss_sum = 0.0
        self.exact_trace = self.total_trace = self.negative_trace = self.trace_variance = 0.0
        self.piecewise_linear = True
        self.not_linear: set[str] = set()
        self.capture_seconds = 0.0
        self._one_by_one = one_by_one
        self.part_size = probe.batch_size
        self.held_passes = 1
        self._sampling: Sampling | None = None
        self.influence_signs = SampleSigns(torch.Generator().manual_seed(plan.seed))

    def begin(self) -> Forward:
        """Run the first samples, and find them in the outputs of the layers where gradients will be wanted."""
        if self.plan.level < Level.GRADIENTS:
            return forward(self.model, [x[:FIRST] for x in self.probe.inputs], self.owners, Blind())
        generator = torch.Generator().manual_seed(self.plan.seed)
        found = separation(
            self.model, self.probe.inputs, self.owners, generator, self.probe.batch_size, self._one_by_one
        )
        self.samples = found.samples
        self.by_jacobians = {layer.name: layer for layer in self.layers if layer.name in found.alone}
        self.left_out = dict(found.left_out)
        return found.seen

    def first(self, receiver: Receiver, progress: Callable[[int], None]) -> None:
        """Take every batch once: activations, gradients, and rows of the curvature for a receiver."""
        for batch in self._batches(progress):
            self._batch(batch, receiver, first=True)

    def again(self, receiver: Receiver, progress: Callable[[int], None]) -> None:
        """Take every batch once more, for rows of the curvature alone."""
        for batch in self._batches(progress):
            self._batch(batch, receiver, first=False)

    def _batches(self, progress: Callable[[int], None]) -> Iterator[Batch]:
        for batch in self.probe.batches():
            progress(batch.start)
            yield batch

    def apart(self, layer: Layer) -> bool:
        """Whether the rows of a layer's output are the samples, in their order."""
        known = self.samples.get(layer.name, ())
        shown = bool(known) or layer.name not in self.by_jacobians
        return layer.name not in self.left_out and shown and all(s.before == 1 for s in known)

    def _batch(self, batch: Batch, receiver: Receiver, first: bool) -> None:
        """Pass a batch through, in parts where it is too large."""
        curved = self.plan.level >= Level.CURVATURE
        parts = [batch] if len(batch) <= self.part_size else list(batch.split(self.part_size))
        begun = time.perf_counter()
        seeds = None
        if curved and (len(parts) > 1 or not first):
            outputs = torch.cat([self._output(part) for part in parts])
            seeds = self.seeds(outputs, self._targets(outputs, batch), batch.start)
        self.capture_seconds += time.perf_counter() - begun
        for part in parts:
            seen = self._first_pass(part) if first else None
            if curved:
                begun = time.perf_counter()
                if seeds is None:
                    assert seen is not None
                    seeds = self.seeds(seen.output, self._targets(seen.output, part), batch.start)
                if seen is not None:
                    self._note_curvature(seen, seeds, len(part))
                self._keep_all(seen, part, seeds, part.start - batch.start, receiver)
                self.capture_seconds += time.perf_counter() - begun

    def _first_pass(self, part: Batch) -> Forward:
        """Run the samples with the observer watching, and take first-order measures."""
        begun, observed = time.perf_counter(), self.observer.seconds
        self.observer.begin(self.probe.fold_of(part))
        self._settle(part.start)
        seen = forward(self.model, part.inputs, self.owners, self.observer)
        self.capture_seconds += time.perf_counter() - begun - (self.observer.seconds - observed)
        self._first_order(seen, part, self._targets(seen.output, part))
        return seen

    def _once_more(self, inputs: Sequence[Tensor], start: int) -> Forward:
        self._settle(start)
        return forward(self.model, inputs, self.owners, Blind(), Retrace)

    def _output(self, batch: Batch) -> Tensor:
        self._settle(batch.start)
        with torch.no_grad():
            output = main_output(self.model(*batch.inputs))
        return self._finite(output)

    def _settle(self, start: int) -> None:
        """Let a model that draws numbers in its forward pass draw the same ones whenever it sees these samples."""
        torch.default_generator.manual_seed(self.plan.seed + start)

    def _finite(self, output: Tensor) -> Tensor:
        if not bool(torch.isfinite(output).all()):
            why = "its outputs on the probe are not finite"
            raise NonFiniteOutputError("model", why, "use --level activations")
        return output

    def _first_order(self, seen: Forward, batch: Batch, targets: Tensor | None) -> None:
        self._note_uses(seen)
        if self.plan.level >= Level.GRADIENTS:
            self._finite(seen.output)
        self.predictions.add(batch.inputs, seen.output.detach(), targets)
        if targets is not None:
            assert self.probe.loss is not None
            self.loss_sum += float(self.probe.loss.per_sample(seen.output.detach(), targets).double().sum())
        if self.plan.level >= Level.GRADIENTS:
            self._gradients(seen, batch, targets)

    def note(self, seen: Forward) -> None:
        """Take note of what a forward pass over the first samples showed, as a replay does of every batch."""
        self._note_uses(seen)
        if self.plan.level >= Level.CURVATURE:
            seeds = self.seeds(seen.output, self._first_targets(seen.output), 0)
            self._note_curvature(seen, seeds, len(seen.output))

    def _note_uses(self, seen: Forward) -> None:
        """Take note of what the forward pass showed of the layers."""
        self.reached |= seen.watch.used_elsewhere
        self.not_linear |= seen.watch.not_linear
        for call in seen.calls:
            self.reached.add(call.layer.name)
            if call.reading is not None:
                self.observer.commit(call.layer, call.reading, call.produced, call.is_output)  # type: ignore[arg-type]
        self._count_lookups(seen)

    def _count_lookups(self, seen: Forward) -> None:
        """Add up how often the nodes of a layer took part, where all of its uses say so."""
        found = {use.layer.name: self._lookups(use, seen) for use in layer_uses(seen, self.samples, ())}
        nodes = {layer.name: layer.nodes for layer in self.layers}
        for name, taken in seen.watch.taken.items():
            counts = None
            if taken is not None and (name not in found or found[name] is not None):
                counts = found.get(name)
                for some in taken:
                    more = torch.bincount(some.rows.flatten(), minlength=nodes[name]).double()
                    more *= some.times(len(seen.output))
                    counts = more if counts is None else counts + more
            found[name] = counts
        for name, counts in found.items():
            if counts is None:
                self._always.add(name)
            elif name in self.lookups:
                counts = counts + self.lookups[name]
            if counts is not None:
                self.lookups[name] = counts
        self.lookups = {name: counts for name, counts in self.lookups.items() if name not in self._always}

    def _lookups(self, use: LayerUse, seen: Forward) -> Tensor | None:
        """Return how often each node took part in the uses of a layer, ``None`` where all always do."""
        total = None
        for share in use.shares:
            counts = share.kind.lookups(share)
            if counts is None:
                return None
            once = Taken(share.uses[0].input, all(seen.calls[place].fixed for place in share.places))
            counts = counts * once.times(len(seen.output))
            total = counts if total is None else total + counts
        return total

    def _targets(self, output: Tensor, batch: Batch) -> Tensor | None:
        if self.probe.loss is None or batch.targets is None:
            return None
        return self.probe.loss.prepare(output.detach(), batch.targets)

    def _first_targets(self, output: Tensor) -> Tensor | None:
        """Return the targets of the first samples, of which this is the output."""
        return self._targets(output, next(replace(self.probe, batch_size=len(output)).batches()))

    def uses(self, seen: Forward) -> list[LayerUse]:
        """Return the layers of a forward pass that kinds can treat.

        Raises:
            ChangingUsesError: one is used in a way that the first samples did not show.
        """
        treated = {*self.left_out, *self.by_jacobians}
        changing = (seen.watch.used_elsewhere | strays(seen, self.samples)) - treated
        if changing:
            raise ChangingUsesError(frozenset(changing))
        return layer_uses(seen, self.samples, treated)

    def _gradients(self, seen: Forward, batch: Batch, targets: Tensor | None) -> None:
        loss_seed = None if targets is None else self._loss_seed(seen.output, targets)
        from_loss = None if loss_seed is None else self._loss_gradients(seen, loss_seed)
        seeds = influence_seeds(seen.output, len(self.probe), self.influence_signs, batch.start)
        from_outputs = [seen.gradients(seed) for seed in seeds]
        for use in self.uses(seen):
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
        named = [
            (name, p) for name, p in self.model.named_parameters() if p.requires_grad
        ]  # those of real numbers
        at_outputs, at_parameters = seen.gradients_and_parameters(seed, [p for _, p in named])
        for (name, parameter), grad in zip(named, at_parameters, strict=True):
            value = torch.zeros_like(parameter) if grad is None else grad
            value = value.to_dense() if value.is_sparse else value
            before = self.parameter_gradients.get(name)
            self.parameter_gradients[name] = value if before is None else before + value
        return at_outputs

    @property
    def precise(self) -> bool:
        """Whether the network computes in double precision."""
        return any(p.dtype == torch.float64 for p in self.model.parameters())

    @property
    def sampling(self) -> Sampling:
        """What sampling may cost, as the first samples have shown."""
        assert self._sampling is not None
        return self._sampling

    @property
    def negative_share(self) -> float:
        """The share of the loss's curvature in the output that is negative."""
        negative = self.negative_trace
        return negative / (negative + self.total_trace) if negative > 0 else 0.0

    @property
    def noise(self) -> float:
        """The standard deviation that random signs gave the trace, as a share of it."""
        return self.trace_variance**0.5 / self.total_trace if self.total_trace > 0 else 0.0

    def seeds(self, output: Tensor, targets: Tensor | None, start: int) -> Seeds:
        """Return the seeds of a batch whose first sample has this place in the probe."""
        assert self.probe.loss is not None
        plan, sampling = self.plan, self.sampling
        factor = loss_factor(self.probe.loss, output, targets, plan.coverage, all_exact=sampling.noise == 0)
        signs = torch.Generator().manual_seed(plan.seed)
        return Seeds(
            factor, sampling.noise, signs,
            own_noise=sampling.own_noise, coverage=plan.coverage, limit=plan.passes, first=start,
            alike=output.reshape(len(output), -1).argmax(dim=1),
        )  # fmt: skip

    def look(self, seen: Forward) -> Seeds:
        """Decide, by the first samples, whether columns share passes, and return the seeds of those samples."""
        assert self.probe.loss is not None
        output = self._finite(seen.output)
        targets = self._first_targets(output)
        columns = loss_factor(self.probe.loss, output, targets, self.plan.coverage).weights.shape[1]
        self._sampling = sampling_of(self.plan, seen, columns, len(self.probe), self.precise)
        return self.seeds(output, targets, 0)

    def _note_curvature(self, seen: Forward, seeds: Seeds, count: int) -> None:
        assert self.probe.loss is not None
        rounding = max(1e-9, 100 * torch.finfo(seen.output.dtype).eps)
        linear = seen.watch.proof.holds(seen.output, self.probe.loss.class_axis)
        convex = seeds.negative <= rounding * seeds.total
        self.piecewise_linear = self.piecewise_linear and linear and convex
        self.negative_trace += 0.0 if convex else seeds.negative * count
        self.total_trace += seeds.total * count
        self.exact_trace += seeds.exact * seeds.total * count
        self.trace_variance += seeds.variance * count

    def _keep_all(
        self, seen: Forward | None, part: Batch, seeds: Seeds, offset: int, receiver: Receiver
    ) -> None:
        """Pass the seeds of a part of a batch back; ``offset`` is its place in the batch that the seeds belong to.

        ``seen`` is the forward pass of the part, where there was one.
        """
        folds = self.probe.fold_of(part)
        own = slice(offset, offset + len(part))
        for group in seeds.groups(self.part_size * self.held_passes, folds, own):
            if group.samples is None:
                seen = seen or self._once_more(part.inputs, part.start)
                self._keep(seen, part.inputs, group.seeds, folds, receiver)
            else:
                some = [x[group.samples] for x in part.inputs]
                again = self._once_more(some, part.start)
                self._keep(again, some, group.seeds, folds[group.samples.to(folds.device)], receiver)

    def _keep(
        self,
        seen: Forward,
        inputs: Sequence[Tensor],
        seeds: Iterable[Tensor],
        folds: Tensor,
        receiver: Receiver,
    ) -> None:
        """Show a receiver what passes gave; ``folds`` are those of the samples in them."""
        every = [Shown(use) for use in self.uses(seen) if receiver.wants(use.layer.name)]
        passed = []
        for seed in seeds:
            gradients = seen.gradients(seed, receiver.wants)
            for shown in every:
                shown.add(gradients)
            passed += [seed] if self.by_jacobians else []
        rows = FoldRows(folds)
        while every:
            receiver.take(every.pop(0), rows)
        for part, found in self._jacobians(inputs, seen.output, passed, receiver):
            for name, own in found.items():
                receiver.take_jacobians(self.by_jacobians[name], own, FoldRows(folds[part]))

    def _jacobians(
        self,
        inputs: Sequence[Tensor],
        output: Tensor,
        seeds: Sequence[Tensor],
        receiver: Receiver | None = None,
    ) -> Iterator[tuple[slice, Rows]]:
        """Yield Jacobians of the layers that no kind can treat and a receiver wants; nothing where there are none."""
        layers = [layer for layer in self.by_jacobians.values() if layer.name not in self.left_out]
        layers = [layer for layer in layers if receiver is None or receiver.wants(layer.name)]
        if not layers or not seeds:
            return
        try:
            yield from sample_jacobians(self.model, layers, inputs, output, torch.stack(list(seeds)))
        except SamplesMixedError as error:
            for layer in self.by_jacobians.values():
                self.left_out.setdefault(layer.name, str(error))
                if receiver is not None:
                    receiver.drop(layer.name)
