from __future__ import annotations

import pytest
import torch

from nndiag.checkpoint.progress import Progress, from_metadata, from_name, from_optimizers, from_tree
from nndiag.checkpoint.record import SavedOptimizer


@pytest.mark.parametrize(
    ("stem", "step", "epoch"),
    [
        ("epoch=2-step=645", 645, 2),
        ("v3-epoch=2-step=645-v1", 645, 2),
        ("epoch_03", None, 3),
        ("Epoch12", None, 12),
        ("model_ep7", None, 7),
        ("model-e7", None, 7),
        ("step-1000", 1000, None),
        ("net_iter_500", 500, None),
        ("global_step42", 42, None),
        ("ckpt_12", None, None),
        ("resnet50", None, None),
        ("e2e_model", None, None),
        ("footstep3", None, None),
        ("epoch_" + "9" * 30, None, None),
    ],
)
def test_names(stem: str, step: int | None, epoch: int | None) -> None:
    assert from_name(stem) == Progress(step, epoch)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"epoch": 3, "global_step": 10, "step": 4}, Progress(10, 3)),
        ({"iteration": torch.tensor(5), "current_epoch": torch.tensor(2.0)}, Progress(5, 2)),
        ({"epoch": True, "step": -1}, Progress()),
        ({"epoch": 1.5, "step": float("nan")}, Progress()),
        ({"epoch": "3", "step": torch.ones(2)}, Progress()),
        ({"step": 1 << 80}, Progress()),
        ([1], Progress()),
    ],
)
def test_trees(tree: object, expected: Progress) -> None:
    assert from_tree(tree, is_weights=False) == expected


def test_a_weight_named_step_is_no_step() -> None:
    assert from_tree({"step": torch.tensor(5), "epoch": 2}, is_weights=True) == Progress(None, 2)


def test_metadata_counts_only_as_digits() -> None:
    assert from_metadata({"global_step": "12", "epoch": "two"}) == Progress(12, None)
    assert from_metadata({"step": "-1", "epoch": "9" * 40}) == Progress()


def test_optimizers_must_agree() -> None:
    def saved(*steps: float) -> SavedOptimizer:
        return SavedOptimizer("o", (), {index: {"step": step} for index, step in enumerate(steps)})

    assert from_optimizers([saved(3, 3.0), saved(3)]) == Progress(step=3)
    assert from_optimizers([saved(3, 4)]) == Progress()
    assert from_optimizers([saved()]) == Progress()


def test_gaps_are_filled() -> None:
    assert Progress(1, None).or_else(Progress(2, 3)) == Progress(1, 3)
    assert Progress(0, 0).or_else(Progress(2, 3)) == Progress(0, 0)
