"""One checkpoint of a scan after another: opened, fitted to the model, measured, judged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from nndiag.checkpoint import Checkpoint, Permission, open_checkpoint
from nndiag.errors import InputError, NndiagError
from nndiag.measures import NonFiniteOutputError, Plan, Update, forecast, measure
from nndiag.measures.certificate import Bounds, certify
from nndiag.measures.record import all_finite, weights_only
from nndiag.model.fit import Fit, fit, load
from nndiag.model.optimizer import match_optimizer
from nndiag.pipeline.cache import Cache
from nndiag.pipeline.document import diagnosis
from nndiag.pipeline.inputs import Inputs
from nndiag.pipeline.listener import Listener, Notes
from nndiag.pipeline.noise import on_noise, weakened
from nndiag.pipeline.settings import ScanSettings
from nndiag.pipeline.update_rule import update_rule
from nndiag.pipeline.verifying import verified
from nndiag.pipeline.weights import choose_tensors, count_parameters, measure_weights
from nndiag.probe.probe import Probe
from nndiag.records.forecast import Forecast
from nndiag.records.level import Level
from nndiag.records.measured import Measured
from nndiag.records.report import Diagnosis
from nndiag.remedies import Goal
from nndiag.replay.layers import find_layers
from nndiag.rules.diagnose import Selection, flagged, judge, judge_model
from nndiag.rules.thresholds import thresholds


@dataclass(frozen=True)
class Seen:
    """What one checkpoint gave: its numbers, its parameters counted, whether an optimiser's state came with it, and the
    update rule where it is known."""

    measured: Measured
    parameters: int
    trained: bool
    update: Update | None = None


@dataclass(frozen=True)
class Loaded:
    """A checkpoint whose weights are in a model: where they lie in it, and what trained them."""

    checkpoint: Checkpoint
    fitted: Fit
    update: Update | None
    trained: bool


@dataclass(frozen=True)
class Job:
    """What is the same for every checkpoint of one scan."""

    inputs: Inputs
    settings: ScanSettings
    level: Level
    selection: Selection
    notes: Notes
    listener: Listener
    permission: Permission
    cache: Cache | None = None

    def diagnose(self, index: int) -> Diagnosis:
        """Measure and judge one checkpoint, by its place among the files.

        Raises:
            UsageError, InputError, ModelError: it cannot be done.
        """
        begun = time.perf_counter()
        self._progress(index, "reading", 0.0)
        checkpoint = open_checkpoint(self.inputs.files[index], self.permission)
        kept = None if self.cache is None else self.cache.load(checkpoint)
        if kept is not None:
            self._repeat(kept[1])
            self._progress(index, "known", 1.0)
            return kept[0]
        heard = len(self.notes.heard)
        for sentence in checkpoint.notes:
            self.notes.say(sentence)
        model = self.inputs.model
        seen = self._by_names(checkpoint) if model is None else self._in_model(index, checkpoint, model)
        found = self._judged(checkpoint, seen, begun)
        if self.settings.verify and model is not None:
            found = self._verified(index, found, model, seen.update, self._goal(seen.trained))
        if self.cache is not None:
            self.cache.store(checkpoint, found, self.notes.heard[heard:])
        self._progress(index, "done", 1.0)
        return found

    def load(self, index: int, model: nn.Module) -> Loaded:
        """Open one checkpoint and put its weights into a model.

        Raises:
            UsageError, InputError, ModelError: it cannot be done.
        """
        checkpoint = open_checkpoint(self.inputs.files[index], self.permission)
        for sentence in checkpoint.notes:
            self.notes.say(sentence)
        fitted, update, trained = self._loaded(checkpoint, model)
        return Loaded(checkpoint, fitted, update, trained)

    def examine(self, loaded: Loaded, model: nn.Module, index: int = 0) -> Diagnosis:
        """Measure and judge a model as it is now, which was loaded from a checkpoint and may have been changed.

        Raises:
            UsageError, InputError, ModelError: it cannot be done.
        """
        begun = time.perf_counter()
        measured = self._measured(index, model, loaded.update)
        seen = Seen(measured, sum(p.numel() for p in model.parameters()), loaded.trained)
        return self._judged(loaded.checkpoint, seen, begun)

    def _judged(self, checkpoint: Checkpoint, seen: Seen, begun: float) -> Diagnosis:
        """Judge what was measured."""
        timing = replace(seen.measured.timing, total_s=time.perf_counter() - begun)
        measured = replace(seen.measured, timing=timing)
        judged = judge(measured, self.selection)
        of_model = judge_model(measured, self.selection)
        if self.inputs.probe is not None and self.inputs.probe.random:
            judged, of_model = tuple(map(on_noise, judged)), weakened(of_model)
        goal = self._goal(seen.trained)
        return diagnosis(
            checkpoint, seen.parameters, self.inputs.probe, measured, judged, of_model, goal,
            self.settings.all_nodes,
        )  # fmt: skip

    def _repeat(self, notes: Sequence[tuple[str | None, str]]) -> None:
        """Say again what was said when a checkpoint was measured."""
        for name, sentence in notes:
            if name is None:
                self.notes.say(sentence)
            else:
                self.notes.say_of(name, sentence)

    def _by_names(self, checkpoint: Checkpoint) -> Seen:
        """Look at the weights alone: names and shapes suggest the layers."""
        settings = self.settings
        with _naming(checkpoint.path):
            tensors = choose_tensors(checkpoint.places, settings.weights_key, settings.strip_prefix)
            measured = measure_weights(tensors)
        return Seen(measured, count_parameters(tensors.specs), bool(checkpoint.optimizers))

    def forecast(self, index: int) -> Forecast:
        """Say what measuring one checkpoint would take, and all of them together.

        Raises:
            UsageError, InputError, ModelError: it cannot be done.
        """
        model, probe = self.inputs.model, self.inputs.probe
        assert model is not None
        assert probe is not None
        checkpoint = open_checkpoint(self.inputs.files[index], self.permission)
        _, update, _ = self._loaded(checkpoint, model)
        if not all_finite(dict(model.named_parameters())):
            why = "its weights are not finite, so that nothing but the weights would be looked at"
            raise InputError(checkpoint.path, why, "plan with another checkpoint")
        plan, count = self._plan(), len(self.inputs.files)
        try:
            return forecast(model, probe, plan, update, count, self.settings.certificate)
        except NonFiniteOutputError:
            return forecast(model, probe, replace(plan, level=Level.ACTIVATIONS), update, count)

    def _in_model(self, index: int, checkpoint: Checkpoint, model: nn.Module) -> Seen:
        """Load the weights into the model and look as deep as is wanted and they allow."""
        _, update, trained = self._loaded(checkpoint, model)
        measured = self._measured(index, model, update)
        return Seen(measured, sum(p.numel() for p in model.parameters()), trained, update)

    def _loaded(self, checkpoint: Checkpoint, model: nn.Module) -> tuple[Fit, Update | None, bool]:
        """Load the weights into the model; return them, the update rule, and whether an optimiser's state was there."""
        settings = self.settings
        with _naming(checkpoint.path):
            fitted = fit(model, checkpoint.places, settings.weights_key, settings.strip_prefix)
            load(model, fitted)
        self.notes.say(fitted.note)
        saved, sentence = match_optimizer(model, fitted, checkpoint.optimizers)
        self.notes.say(sentence)
        update = update_rule(saved, checkpoint.step, self.inputs.config, settings)
        if saved is None and update is not None and update.facts.is_adam:
            self.notes.say("optimiser: without the second moments of Adam its stability margins are left out")
        return fitted, update, saved is not None

    def _measured(self, index: int, model: nn.Module, update: Update | None) -> Measured:
        probe = self.inputs.probe
        parameters = dict(model.named_parameters(remove_duplicate=False))
        wanted = Level.WEIGHTS if probe is None else self.level
        if probe is not None and wanted > Level.WEIGHTS:
            if all_finite(parameters):
                return self._replayed(index, model, probe, update)
            self._note_of(index, "weights are not finite, so that nothing but the weights is looked at")
        weights = weights_only(find_layers(model), parameters)
        return replace(weights, optimizer=update.facts if update else None)

    def _replayed(self, index: int, model: nn.Module, probe: Probe, update: Update | None) -> Measured:
        def progress(what: str, done: int, total: int) -> None:
            # Measuring and the certificate are taken for one part each.
            parts = 1 + self.settings.certificate
            before = 1 if what.startswith("certificate") else 0
            self._progress(index, what, (before + done / max(total, 1)) / parts)

        plan, preferred = self._plan(), partial(flagged, selection=self.selection)
        try:
            found = measure(model, probe, plan, update, progress, preferred)
            measured = _of_kind(found, self.settings.curvature)
        except NonFiniteOutputError:
            self._note_of(index, "outputs are not finite, so that gradients and curvature are left out")
            return measure(model, probe, replace(plan, level=Level.ACTIVATIONS), update, progress)
        for sentence in measured.notes:
            self._note_of(index, sentence)
        if not self.settings.certificate:
            return measured
        values = thresholds(self.selection.thresholds)
        bounds = Bounds(signal=values["stationary_signal"], flat=values["flat_direction"])
        facts = update.facts if update else None
        return replace(
            measured, certificate=certify(model, probe, bounds, self.settings.seed, facts, progress)
        )

    def _verified(
        self, index: int, found: Diagnosis, model: nn.Module, update: Update | None, goal: Goal
    ) -> Diagnosis:
        """Try the actions of a diagnosis, where the network puts out numbers that can be compared."""
        assert self.inputs.probe is not None
        self._progress(index, "trying the actions", 0.9)
        try:
            tried = verified(found, model, self.inputs.probe, update, self.settings.seed, goal)
        except NonFiniteOutputError:
            self._note_of(index, "outputs are not finite, so that no action is tried")
            return found
        if tried.untried:
            self._note_of(index, tried.untried)
        return tried.diagnosis

    def _plan(self) -> Plan:
        settings = self.settings
        # what is called the Hessian must not rest on a sample of the columns
        noise = 0.0 if settings.curvature == "hessian" else None
        # the literal rule asks for every eigenvalue
        solver = "dense" if settings.profile == "literal" else settings.solver
        return Plan(
            self.level, solver, noise=noise, seed=settings.seed, curvature=settings.curvature,
            granularity=settings.granularity, memory_budget=settings.memory_budget,
            jitter=settings.jitter or 0.0,
        )  # fmt: skip

    def _goal(self, trained: bool) -> Goal:
        """Return whether advice is for training on or for a finished network."""
        given = self.settings.goal or self.inputs.config.actions.goal
        if given is not None:
            return given
        return "train" if trained or len(self.inputs.files) > 1 else "deploy"

    def _note_of(self, index: int, sentence: str) -> None:
        self.notes.say_of(self.inputs.files[index].name, sentence)

    def _progress(self, index: int, what: str, share: float) -> None:
        count = len(self.inputs.files)
        where = f"checkpoint {index + 1} of {count}: " if count > 1 else ""
        self.listener.progress(where + what, (index + min(share, 1.0)) / count)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error say which checkpoint it is about."""
    try:
        yield
    except NndiagError as error:
        if error.what.startswith("--") or str(path) in error.what:
            raise
        raise type(error)(f"{path}, {error.what}", error.why, error.do) from error


def _of_kind(measured: Measured, wanted: str) -> Measured:
    """Return the measurement with its curvature called Gauss-Newton where that was asked for, exact as it may be."""
    facts = measured.curvature
    if facts is None or wanted != "ggn":
        return measured
    layers = tuple(
        replace(layer, curvature_kind=wanted) if layer.curvature_kind else layer for layer in measured.layers
    )
    return replace(measured, layers=layers, curvature=replace(facts, kind=wanted))
