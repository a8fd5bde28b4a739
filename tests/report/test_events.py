from __future__ import annotations

import math

import pytest

from nndiag.report.course import course, notable
from nndiag.report.events import events
from tests.report import synthetic
from tests.report.builder import dead, diagnosis, finding, layer, node, report

HEADLINES = {
    "dying": "Layer 2 is dead since epoch 5 (mostly since epoch 3): all 64 nodes never fire.",
    "healthy": "Nothing is wrong: all 138 nodes of 3 layers are healthy on 1,000 samples (level: curvature).",
    "cnn": "1 of 32 nodes of layer2.1.conv1 is above the stability threshold.",
    "unknown": "Nothing wrong was found from the weights alone, but none of the 522 nodes could be judged "
    "(level: weights).",
    "not_finite": "3 of 64 nodes of layer 2 hold numbers that are not finite.",
    "single_node": "Layer hidden is dead: its only node never fires.",
    "long_run": "Layer 0 is dead since epoch 96 (mostly since epoch 60): all 8 nodes never fire.",
    "recovering": "1 of 8 nodes of layer 0 never fires since step 100 (6 then).",
}


@pytest.mark.parametrize("name", HEADLINES)
def test_the_headline_says_what_matters_most(name: str) -> None:
    assert events(synthetic.ALL[name]())[0].sentence == HEADLINES[name]


def test_the_story_goes_on_and_does_not_repeat_itself() -> None:
    told = events(synthetic.dying())
    assert "ND301 no-gradient" in told[0].hence
    assert [event.sentence for event in told[1:]] == [
        "The loss rose from 1.12 at epoch 2 to 2.30 at epoch 8.",
        "5 of 64 nodes of layer 0 never fire since epoch 2 (1 then).",
        "Layer 2: 81 % of the samples reach no node of this layer (ND250 dead-data since epoch 3).",
    ]


def test_a_layer_that_was_always_dead_is_said_to_be_dead_from_the_start() -> None:
    made = diagnosis([layer("0", 4, plateau=4)], [node("0", i, findings=dead(9)) for i in range(4)], step=5)
    told = events(
        report(made, made.model_copy(update={"checkpoint": made.checkpoint.model_copy(update={"step": 6})}))
    )
    assert told[0].sentence == "Layer 0 is dead since step 5, the first checkpoint: all 4 nodes never fire."


def test_the_layer_that_died_first_is_told_first() -> None:
    def at(epoch: int, first: int, second: int):
        nodes = [
            node(name, i, findings=dead(9)) for name, n in (("a", first), ("b", second)) for i in range(n)
        ]
        return diagnosis([layer("a", 4, plateau=first), layer("b", 4, plateau=second)], nodes, epoch=epoch)

    told = events(report(at(1, 0, 0), at(2, 0, 3), at(3, 4, 3)))
    assert told[0].sentence.startswith("Layer b is mostly dead since epoch 2: 3 of 4 nodes")
    assert told[1].sentence.startswith("Layer a is dead since epoch 3")


def test_half_a_layer_is_not_more_than_half() -> None:
    def share(bad: int) -> str:
        nodes = [node("a", i, findings=dead(9)) for i in range(bad)]
        return events(report(diagnosis([layer("a", 4, plateau=bad)], nodes)))[0].kind

    assert (share(2), share(3)) == ("warning", "error")


def test_a_loss_that_is_not_finite_comes_first() -> None:
    layers = [layer("0", 4)]
    told = events(report(diagnosis(layers, epoch=1), diagnosis(layers, epoch=2, loss=math.inf)))
    assert told[0].sentence == "The loss is not finite since epoch 2."
    again = events(report(diagnosis(layers, epoch=1), diagnosis(layers, epoch=2, loss=None)))
    assert again == told


def test_a_recovery_is_told_and_is_no_error() -> None:
    told = events(synthetic.recovering())
    assert (told[-1].kind, told[-1].sentence) == (
        "good", "Layer 0 has recovered: 7 of 8 nodes were degenerate at step 200, 1 at step 300.",
    )  # fmt: skip


def test_notes_alone_do_not_make_a_sick_network() -> None:
    note = finding("ND205", "always-on", "fires on every sample", "info")
    told = events(report(diagnosis([layer("0", 4)], [node("0", 1, "healthy", [note], "none")])))
    assert [event.kind for event in told] == ["good"]


def test_saddles_without_findings_are_not_called_healthy() -> None:
    told = events(report(diagnosis([layer("0", 4, saddle=1)])))
    assert told[0].kind == "info"
    assert "only 3 of 4 nodes count as healthy" in told[0].sentence


def test_codes_that_are_not_known_are_told_by_name() -> None:
    odd = finding("ND999", "novel", "m")
    told = events(report(diagnosis([layer("0", 4)], [node("0", 1, "healthy", [odd])])))
    assert told[0].sentence == "1 of 4 nodes of layer 0 shows novel."


def test_checkpoints_are_called_by_epoch_step_or_place() -> None:
    plain = diagnosis([layer("0", 1)])
    assert course(report(plain, plain)).at(1) == "checkpoint 2"
    assert course(synthetic.recovering()).at(1) == "step 100"
    assert course(synthetic.dying()).at(1) == "epoch 2"


def test_only_large_changes_are_worth_a_full_look() -> None:
    assert notable(course(synthetic.dying())) == (2,)
    assert notable(course(synthetic.long_run())) == ()
