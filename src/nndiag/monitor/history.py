"""What was measured, judged when somebody asks what it means: a training step should not wait for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from nndiag.checkpoint import Checkpoint
from nndiag.pipeline.document import diagnosis
from nndiag.records.measured import Measured, Timing
from nndiag.records.report import Diagnosis, ProbeFacts
from nndiag.rules.diagnose import Selection, judge, judge_model


class Entry:
    """One measurement of a history; ``diagnosis`` is made when it is first asked for."""

    def __init__(self, make: Callable[[], Diagnosis]) -> None:
        self._make = make

    @classmethod
    def of(
        cls,
        measured: Callable[[], Measured],
        name: str,
        step: int,
        parameters: int,
        selection: Selection,
        seconds: float,
    ) -> Entry:
        """Return an entry for a training step that was watched.

        Args:
            measured: puts its numbers together.
            name: what the record calls it.
            step: which one it was.
            parameters: of the network.
            selection: of the findings.
            seconds: that measuring took.
        """
        timing = Timing(total_s=seconds)
        return cls(lambda: _judged(replace(measured(), timing=timing), name, step, parameters, selection))

    @classmethod
    def known(cls, found: Diagnosis) -> Entry:
        """Return an entry for what is judged already."""
        return cls(lambda: found)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What the numbers mean."""
        return self._make()


def _judged(measured: Measured, name: str, step: int, parameters: int, selection: Selection) -> Diagnosis:
    judged, of_model = judge(measured, selection), judge_model(measured, selection)
    named = Checkpoint(path=Path(name), format="memory", places=(), step=step)
    found = diagnosis(named, parameters, None, measured, judged, of_model, "train", False)
    batch = ProbeFacts(
        samples=measured.samples or 0, loss=None, sha256=None, folds=measured.folds or 1,
        has_targets=measured.has_targets,
    )  # fmt: skip
    return found.model_copy(update={"probe": batch})
