"""Matrices whose numbers have left the range of their type are named, and spoil no other."""

from __future__ import annotations

import pytest
import torch
from tests.spectrum.test_extremes import Stack, solve, symmetric
from torch import Tensor

from nndiag.spectrum.eigenpairs import eigenpairs


def damaged(size: int) -> Tensor:
    matrices = symmetric(5, size)
    matrices[1, 0, 0], matrices[3, 2, 1] = torch.inf, torch.nan
    return matrices


def test_values_of_what_is_not_finite_are_nan() -> None:
    matrices = damaged(6)
    values, vectors = eigenpairs(matrices)
    assert values.isnan().all(dim=1).tolist() == [False, True, False, True, False]
    for kept in (0, 2, 4):
        torch.testing.assert_close(values[kept], torch.linalg.eigvalsh(matrices[kept]))
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize("solver", ["lanczos", "dense", "power"])
def test_solvers_say_of_such_blocks_that_they_did_not_converge(solver: str) -> None:
    matrices = damaged(30)
    found = solve(solver, Stack(matrices))
    assert not found.converged[1]
    assert not found.converged[3]
    if solver != "power":  # which has no eigenvalue problem to solve, and gives what it came to
        assert found.largest.isnan().tolist() == [False, True, False, True, False]
    for kept in (0, 2, 4):
        truth = torch.linalg.eigvalsh(matrices[kept])
        torch.testing.assert_close(found.largest[kept], truth[-1], rtol=1e-2, atol=0)
        torch.testing.assert_close(found.smallest[kept], truth[0], rtol=1e-2, atol=0)
