"""The checkpoint to go back to."""

from __future__ import annotations

from nndiag.report.turning_back import turning_back
from tests.report import synthetic


def test_it_is_the_one_before_a_layer_fell() -> None:
    said = turning_back(synthetic.dying())
    assert said is not None
    assert said.startswith("Go back to epoch 2, the last before this")


def test_a_healthy_run_and_a_single_checkpoint_have_none() -> None:
    assert turning_back(synthetic.healthy()) is None
    assert turning_back(synthetic.long_run()) is not None
