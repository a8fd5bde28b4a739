"""``scan``: measure and judge one checkpoint, or every checkpoint of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nndiag
from nndiag.pipeline.inputs import Inputs, gather
from nndiag.pipeline.job import Job
from nndiag.pipeline.listener import Listener, Notes, Silence
from nndiag.pipeline.reach import chosen_level, hints, reach_of, require_certificate
from nndiag.pipeline.settings import ScanSettings
from nndiag.records.report import Report
from nndiag.rules.diagnose import Selection

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Outcome:
    """The report, sentences that say how to learn more, and the checkpoint files that it is about."""

    report: Report
    hints: tuple[str, ...]
    files: tuple[Path, ...] = ()


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
        InputError, ModelError: the scan could not be completed.
    """
    settings, listener = settings or ScanSettings(), listener or Silence()
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    notes = Notes(listener)
    inputs = gather([Path(path) for path in several], settings, notes.say)
    reach = reach_of(inputs)
    level = chosen_level(reach, settings.level)
    if settings.certificate:
        require_certificate(inputs, reach, level)
    selection = _selection(inputs, settings)
    job = Job(inputs, settings, level, selection, notes, listener)
    diagnoses = tuple(job.diagnose(index) for index in range(len(inputs.files)))
    notes.close()
    report = Report(
        nndiag_version=nndiag.__version__,
        settings={**settings.described(), "thresholds": dict(selection.thresholds)},
        checkpoints=diagnoses,
    )
    return Outcome(report, hints(reach, level), inputs.files)


def _selection(inputs: Inputs, settings: ScanSettings) -> Selection:
    rules = inputs.config.rules
    return Selection(
        settings.select or rules.select or (), settings.ignore or rules.ignore or (), rules.thresholds
    )
