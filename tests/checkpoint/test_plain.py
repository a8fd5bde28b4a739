from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nndiag.checkpoint.plain import LEFT_OUT, plain_number, plain_tensor, plain_value
from nndiag.errors import InputError

from .files import not_dense


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sparse", r"sparse tensor; .*to_dense"),
        ("quantised", "quantised tensor; give the checkpoint before"),
        ("meta", r"without its values .*; save it from where"),
    ],
)
def test_tensors_that_are_not_dense_are_refused(kind: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plain_tensor(Path("x.pt"), "w", not_dense(kind))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (0.5, 0.5),
        (True, True),
        (torch.tensor(4), 4),
        (torch.ones(1), None),
        ("3", None),
        (None, None),
    ],
)
def test_numbers(value: object, number: object) -> None:
    assert plain_number(value) == number


def test_values_that_are_not_plain_are_left_out() -> None:
    assert plain_value({"a": [1, object(), "x"], "b": object(), (1, 2): 3}) == {"a": (1, "x")}
    assert plain_value(object()) is LEFT_OUT


def test_lists_that_unfold_without_end_stop() -> None:
    bomb: object = [0] * 100
    for _ in range(5):
        bomb = [bomb] * 100
    unfolded = plain_value(bomb)
    leaves = [unfolded]
    for _ in range(5):
        leaves = [inner for outer in leaves if isinstance(outer, tuple) for inner in outer]
    assert sum(len(leaf) for leaf in leaves if isinstance(leaf, tuple)) < 1_000_000
