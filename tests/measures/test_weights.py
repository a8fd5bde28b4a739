"""Repeated rows: equal, with the sign turned, nearly so, and those that repeat nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nndiag.measures.weights import duplicate_rows, weight_measures


def rows() -> torch.Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_pairs_name_the_first_row_that_is_repeated() -> None:
    table = rows()
    table[3], table[5], table[6] = table[1], -table[1], table[1]
    assert duplicate_rows(table) == (((3, 1), (6, 1)), ((5, 1),))


def test_a_row_that_repeats_one_row_and_mirrors_another_repeats() -> None:
    table = rows()
    table[3], table[5] = -table[1], table[3].neg()
    table[5] = table[1]
    assert duplicate_rows(table) == (((5, 1),), ((3, 1),))


@pytest.mark.parametrize(("shift", "repeats"), [(1e-8, True), (1e-5, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_is_no_difference(shift: float, repeats: bool, sign: int) -> None:
    table = rows()
    table[3] = sign * table[1] + shift * table[2]
    assert any(duplicate_rows(table)) == repeats


def test_a_multiple_is_no_repetition() -> None:
    table = rows()
    table[3] = 1.001 * table[1]
    assert duplicate_rows(table) == ((), ())


def test_zeros_and_what_is_not_finite_repeat_nothing() -> None:
    table = rows()
    table[2:4] = 0
    table[5:7] = torch.nan
    assert duplicate_rows(table) == ((), ())


def test_norms_are_with_and_without_the_bias() -> None:
    table = rows()
    table[2, 1] = torch.inf
    found = weight_measures(table, weights=table.shape[1] - 1)
    np.testing.assert_allclose(found["weight_norm"][:2], table[:2, :-1].norm(dim=1).numpy())
    np.testing.assert_allclose(found["parameter_norm"][:2], table[:2].norm(dim=1).numpy())
    np.testing.assert_array_equal(found["bias"], table[:, -1].numpy())
    assert found["nonfinite_parameters"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert "bias" not in weight_measures(table, weights=table.shape[1])
