"""Losses that the training wrote down itself stand beside the probe's, with the steps they are of."""

from __future__ import annotations

from nndiag.comparing.judging import compare_run
from nndiag.comparing.reading import run_of
from nndiag.records.report import Diagnosis, LoggedLosses, Report
from nndiag.report.compare_terminal import render_comparison_text
from nndiag.report.document import render_json
from nndiag.report.facts import logged_losses
from nndiag.report.markdown import render_markdown
from nndiag.report.terminal import render_text
from tests.report.builder import diagnosis, layer, report


def at(step: int, logged: LoggedLosses | None) -> Diagnosis:
    one = diagnosis([layer("0", 4)], path=f"run/checkpoint-{step}", step=step)
    return one.model_copy(update={"checkpoint": one.checkpoint.model_copy(update={"logged": logged})})


def run() -> Report:
    early = LoggedLosses(training_loss=2.31, training_step=100)
    late = LoggedLosses(training_loss=0.42, training_step=290, eval_loss=0.5, eval_step=300)
    return report(at(50, None), at(100, early), at(300, late))


def test_the_first_and_the_last_that_are_known_are_said_once() -> None:
    logged = [one.checkpoint.logged for one in run().checkpoints]
    training = "logged training loss 2.31 at step 100, 0.420 at step 290"
    assert list(logged_losses(logged)) == [training, "logged evaluation loss 0.500 at step 300"]
    same = LoggedLosses(training_loss=1.0, training_step=10)
    assert list(logged_losses([same, same])) == ["logged training loss 1.00 at step 10"]
    assert list(logged_losses([LoggedLosses(training_loss=1.0)])) == ["logged training loss 1.00"]
    assert list(logged_losses([None, LoggedLosses()])) == []


def test_scans_say_them_of_the_run_and_of_the_checkpoint() -> None:
    text = " ".join(render_text(run(), width=120).split())
    assert "logged training loss 2.31 at step 100, 0.420 at step 290" in text
    assert "on 1,000 samples · logged training loss 0.420 at step 290" in text
    assert "logged evaluation loss 0.500 at step 300" in render_markdown(run())
    assert "logged" not in render_text(report(at(50, None)))


def test_a_comparison_of_reports_says_them_and_keeps_them() -> None:
    found = compare_run(run_of([one.model_dump() for one in run().checkpoints]), "0")
    assert [mark.logged for mark in found.checkpoints] == [one.checkpoint.logged for one in run().checkpoints]
    assert "logged training loss 2.31 at step 100, 0.420 at step 290" in " ".join(
        render_comparison_text(found).split()
    )
    assert '"logged": {"training_loss": 0.42' in render_json(found)
