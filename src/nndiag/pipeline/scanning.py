"""``scan``: measure and judge one checkpoint, or every checkpoint of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nndiag
from nndiag.checkpoint import Checkpoint, open_checkpoint
from nndiag.errors import UsageError, printable
from nndiag.measures.collect import NonFiniteOutputError, Plan, measure
from nndiag.measures.record import all_finite, weights_only
from nndiag.model.fit import fit, load
from nndiag.model.optimizer import match_optimizer
from nndiag.pipeline.document import diagnosis
from nndiag.pipeline.inputs import Inputs, gather
from nndiag.pipeline.settings import Listener, ScanSettings
from nndiag.pipeline.update_rule import update_rule
from nndiag.pipeline.weights import choose_place, measure_weights
from nndiag.records.level import Level
from nndiag.records.measured import Measured
from nndiag.records.report import Diagnosis, Report
from nndiag.remedies import Goal
from nndiag.replay.layers import find_layers
from nndiag.rules.diagnose import Selection, judge


@dataclass(frozen=True)
class Outcome:
    """The report, and sentences that say how to learn more."""

    report: Report
    hints: tuple[str, ...]


def scan(paths: Sequence[Path], settings: ScanSettings, listener: Listener) -> Outcome:
    """Scan checkpoints.

    Args:
        paths: checkpoint files or run directories, in order.
        settings: what to do.
        listener: told of choices and progress.

    Returns:
        One diagnosis a checkpoint, in training order.

    Raises:
        UsageError: options or configuration are wrong.
        InputError, ModelError: the scan could not be completed.
    """
    said: set[str] = set()

    def note(sentence: str) -> None:
        if sentence and sentence not in said:
            said.add(sentence)
            listener.note(sentence)

    inputs = gather(paths, settings, note)
    level = _level(inputs, settings.level)
    job = _Job(inputs, settings, level, _selection(inputs, settings), note, listener)
    diagnoses = tuple(job.one(index, path) for index, path in enumerate(inputs.files))
    report = Report(
        nndiag_version=nndiag.__version__,
        settings={**settings.described(), "thresholds": dict(job.selection.thresholds)},
        checkpoints=diagnoses,
    )
    return Outcome(report, _hints(inputs, level))


@dataclass(frozen=True)
class _Job:
    """What is the same for every checkpoint of one scan."""

    inputs: Inputs
    settings: ScanSettings
    level: Level
    selection: Selection
    note: object
    listener: Listener

    def one(self, index: int, path: Path) -> Diagnosis:
        """Measure and judge one checkpoint."""
        begun = time.perf_counter()
        count = len(self.inputs.files)
        self.listener.progress(index, count, "reading", 0, 1)
        checkpoint = open_checkpoint(path)
        for sentence in checkpoint.notes:
            self._note(sentence)
        measured, parameters, trained = self._measured(index, checkpoint)
        timing = replace(measured.timing, total_s=time.perf_counter() - begun)
        measured = replace(measured, timing=timing)
        judged = judge(measured, self.selection)
        goal = self._goal(trained)
        found = diagnosis(
            checkpoint, parameters, self.inputs.probe, measured, judged, goal, self.settings.all_nodes
        )
        self.listener.progress(index + 1, count, "done", 0, 1)
        return found

    def _note(self, sentence: str) -> None:
        self.note(sentence)  # type: ignore[operator]

    def _measured(self, index: int, checkpoint: Checkpoint) -> tuple[Measured, int, bool]:
        """Return the numbers, the count of parameters, and whether an optimiser came with the checkpoint."""
        settings, model = self.settings, self.inputs.model
        if model is None:
            tensors = choose_place(checkpoint.places, settings.weights_key, settings.strip_prefix)
            count = sum(t.numel() for t in tensors.values() if t.is_floating_point())
            return measure_weights(tensors), count, bool(checkpoint.optimizers)
        fitted = fit(model, checkpoint.places, settings.weights_key, settings.strip_prefix)
        self._note(fitted.note)
        load(model, fitted)
        saved, sentence = match_optimizer(model, fitted, checkpoint.optimizers)
        self._note(sentence)
        update = update_rule(saved, checkpoint.step, self.inputs.config, settings)
        count = sum(p.numel() for p in model.parameters())
        probe = self.inputs.probe
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if probe is None or self.level == Level.WEIGHTS or not all_finite(parameters):
            if probe is not None and self.level > Level.WEIGHTS:
                self._note(f"{checkpoint.path.name}: weights are not finite, so only they are looked at")
            weights = weights_only(find_layers(model), parameters)
            return replace(weights, optimizer=update.facts if update else None), count, saved is not None
        files = len(self.inputs.files)

        def progress(what: str, done: int, total: int) -> None:
            self.listener.progress(index, files, what, done, total)

        plan = Plan(self.level, settings.solver, seed=settings.seed)
        try:
            measured = measure(model, probe, plan, update, progress)
        except NonFiniteOutputError:
            self._note(
                f"{checkpoint.path.name}: outputs are not finite, so gradients and curvature are left out"
            )
            measured = measure(model, probe, replace(plan, level=Level.ACTIVATIONS), update, progress)
        return measured, count, saved is not None

    def _goal(self, trained: bool) -> Goal:
        """Return whether advice is for training on or for a finished network."""
        given = self.settings.goal or self.inputs.config.actions.goal
        if given is not None:
            return given
        return "train" if trained or len(self.inputs.files) > 1 else "deploy"


def _selection(inputs: Inputs, settings: ScanSettings) -> Selection:
    rules = inputs.config.rules
    return Selection(
        settings.select or rules.select or (), settings.ignore or rules.ignore or (), rules.thresholds
    )


def _level(inputs: Inputs, wanted: Level | None) -> Level:
    """Return the deepest level that the inputs allow, or the one wanted.

    Raises:
        UsageError: the one wanted needs more than was given.
    """
    allowed, missing = _allowed(inputs)
    if wanted is not None and wanted > allowed:
        raise UsageError(f"--level {wanted.label}", f"it needs {missing[0]}", f"add {missing[1]}")
    return allowed if wanted is None else wanted


def _allowed(inputs: Inputs) -> tuple[Level, tuple[str, str]]:
    if inputs.model is None:
        return Level.WEIGHTS, ("the model", "--model file.py:callable")
    if inputs.probe is None:
        return Level.WEIGHTS, ("data", "--data FILE")
    if inputs.probe.loss is None:
        return Level.ACTIVATIONS, ("a loss", "--loss cross_entropy (or mse, nll, bce_with_logits)")
    return Level.CURVATURE, ("", "")


def _hints(inputs: Inputs, level: Level) -> tuple[str, ...]:
    """Return the one flag that gets the next level, where a flag is what is missing."""
    allowed, (_, flag) = _allowed(inputs)
    if level == Level.CURVATURE:
        return ()
    if level < allowed:
        return (f"leave out --level {level.label} to look as deep as {allowed.label}",)
    next_level = Level(level + 1).label if inputs.probe is None else "gradients and curvature"
    return (printable(f"add {flag} to get the {next_level} level"),)
