"""``scan``: measure and judge one checkpoint, or every checkpoint of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nndiag
from nndiag.checkpoint import Permission
from nndiag.checkpoint.opening import glance
from nndiag.errors import InputError, ModelError, NndiagError, UsageError
from nndiag.pipeline.cache import open_cache
from nndiag.pipeline.inputs import Inputs, gather, located
from nndiag.pipeline.job import Job
from nndiag.pipeline.listener import Listener, Notes, Silence
from nndiag.pipeline.reach import (
    Reach,
    chosen_level,
    hints,
    not_looked_for,
    reach_of,
    require_certificate,
    require_trials,
)
from nndiag.pipeline.settings import ScanSettings
from nndiag.pipeline.survey import Survey
from nndiag.records.forecast import Forecast
from nndiag.records.level import Level
from nndiag.records.report import Diagnosis, Report
from nndiag.rules.diagnose import Selection

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Outcome:
    """The report, sentences that say how to learn more, and the checkpoints that were asked for.

    ``refused`` says of each of several checkpoints that could not be scanned why not; the report is about the others.
    """

    report: Report
    look_further: Callable[[], tuple[str, ...]] = field(repr=False, compare=False)
    files: tuple[Path, ...] = ()
    refused: tuple[NndiagError, ...] = ()

    @cached_property
    def hints(self) -> tuple[str, ...]:
        """Sentences that name the flags that get more; they look at the files again, which only people ask for."""
        return self.look_further()


def scan(
    paths: AnyPath | Sequence[AnyPath],
    settings: ScanSettings | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Scan checkpoints.

    Args:
        paths: checkpoint files or run directories, in order; or a single one.
        settings: what to do; by default everything that the inputs allow.
        listener: told of choices and progress.

    Returns:
        One diagnosis a checkpoint, in training order.

    Raises:
        UsageError: options or configuration are wrong.
        InputError, ModelError: the scan could not be completed, for none of the checkpoints.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    job, reach = make_job(several, settings or ScanSettings(), listener or Silence())
    inputs, settings, selection = job.inputs, job.settings, job.selection
    diagnoses, refused = _diagnosed(job)
    job.notes.close()
    report = Report(
        nndiag_version=nndiag.__version__,
        settings={**settings.described(), "thresholds": dict(selection.thresholds)},
        checkpoints=diagnoses,
    )
    return Outcome(
        report,
        lambda: hints(reach, job.level, lambda: _seen(several, inputs.files, job.permission)),
        inputs.files,
        refused,
    )


def _diagnosed(job: Job) -> tuple[tuple[Diagnosis, ...], tuple[NndiagError, ...]]:
    """Diagnose every checkpoint that can be: one damaged file must not hide the rest of a run."""
    diagnoses: list[Diagnosis] = []
    refused: list[NndiagError] = [*job.inputs.refused]
    for index in range(len(job.inputs.files)):
        try:
            diagnoses.append(job.diagnose(index))
        except (InputError, ModelError) as error:
            refused.append(error)
    if refused and not diagnoses:
        raise refused[0]
    return tuple(diagnoses), tuple(refused)


def plan_scan(
    paths: AnyPath | Sequence[AnyPath],
    settings: ScanSettings | None = None,
    listener: Listener | None = None,
) -> tuple[Forecast, tuple[NndiagError, ...]]:
    """Say what ``scan`` would do with the same arguments, without doing it: replays, bytes, and about what time.

    Returns:
        The forecast, and why some of several checkpoints would not be scanned, as far as that is known before.

    Raises:
        UsageError: options or configuration are wrong, or weights alone would be looked at.
        InputError, ModelError: the scan could not be completed.
    """
    job, reach = make_job(paths, settings or ScanSettings(), listener or Silence())
    if reach.level == Level.WEIGHTS:
        raise UsageError("--plan", f"without {reach.missing} only weights are read", f"add {reach.flag}")
    if job.level == Level.WEIGHTS:
        raise UsageError("--plan", "--level weights only reads them", "give a deeper --level, or none")
    found = job.forecast(len(job.inputs.files) - 1)
    job.notes.close()
    return found, job.inputs.refused


def make_job(
    paths: AnyPath | Sequence[AnyPath], settings: ScanSettings, listener: Listener
) -> tuple[Job, Reach]:
    """Gather what a scan works on, and decide how deep it looks."""
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    notes = Notes(listener)
    inputs = gather([Path(path) for path in several], settings, notes.say)
    settings = located(settings, inputs.config)
    reach = reach_of(inputs)
    level = chosen_level(reach, settings.level)
    if settings.certificate:
        require_certificate(inputs, reach, level)
    if settings.verify:
        require_trials(inputs, level)
    permission = Permission.of(settings.trust, settings.allow_global)
    selection = _selection(inputs, settings)
    for sentence in not_looked_for(selection.select, level, settings.certificate):
        notes.say(sentence)
    rules = [selection.select, selection.ignore, dict(selection.thresholds), settings.profile]
    cache = open_cache(inputs, settings, {"level": level.label, "rules": rules})
    return Job(inputs, settings, level, selection, notes, listener, permission, cache), reach


def _seen(paths: Sequence[AnyPath], files: Sequence[Path], permission: Permission) -> Survey | None:
    """Look at what lies with the checkpoints; it is a help, so that nothing that it meets is an error."""
    try:
        return Survey(Path(paths[0]), tuple(files), glance(files[-1], permission))
    except NndiagError:
        return None


def _selection(inputs: Inputs, settings: ScanSettings) -> Selection:
    rules = inputs.config.rules
    return Selection(
        settings.select or rules.select or (),
        settings.ignore or rules.ignore or (),
        rules.thresholds,
        settings.profile,
    )
