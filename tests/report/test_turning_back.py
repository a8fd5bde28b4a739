"""The checkpoint to go back to."""

from __future__ import annotations

from nndiag.report.turning_back import turning_back
from tests.report import synthetic
from tests.report.builder import dead, diagnosis, finding, layer, node, report


def test_it_is_the_one_before_a_layer_fell() -> None:
    said = turning_back(synthetic.dying())
    assert said is not None
    assert said.startswith("Go back to epoch 2, the last before this")


def test_a_healthy_run_and_a_single_checkpoint_have_none() -> None:
    assert turning_back(synthetic.healthy()) is None
    assert turning_back(synthetic.long_run()) is not None


def test_what_to_change_is_told_by_what_became_of_most_nodes() -> None:
    flat, gone = finding("ND401", "plateau", "flat"), finding("ND102", "zero-collapse", "collapsed")
    started = [node("0", 0, findings=dead(400)), *(node("0", i, findings=[flat]) for i in range(1, 6))]
    ended = [node("0", 0, findings=dead(400)), *(node("0", i, findings=[gone]) for i in range(1, 6))]
    setting = {"name": "sgd", "lr": 0.1, "weight_decay": 0.28}
    run = [
        diagnosis([layer("0", 6)], epoch=0, optimizer=setting),
        diagnosis([layer("0", 6, plateau=6)], started, epoch=1, optimizer=setting),
        diagnosis([layer("0", 6, collapsed=5, plateau=1)], ended, epoch=2, optimizer=setting),
    ]
    assert turning_back(report(*run)) == (
        "Go back to epoch 0, the last before this, and train on with a smaller weight decay than 0.280"
    )
    assert "learning rate" in str(turning_back(report(*run[:2])))
