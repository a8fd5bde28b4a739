"""Products and sums over the positions of a sample, in one go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nndiag.replay.kinds.norm import _products_and_sums


def drawn(*shape: int) -> tuple[Tensor, Tensor]:
    g, x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return g, x


@pytest.mark.parametrize(
    "shape", [(3, 4, 100), (2, 5, 1), (1, 1, 1), (70, 3, 17), (0, 4, 3), (3, 0, 2), (3, 4, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_they_are_those_of_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g, x = drawn(*shape)
    products, sums = _products_and_sums(g.to(dtype), x.to(dtype))
    accepted = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(products.double(), (g * x).sum(dim=2), rtol=accepted, atol=accepted)
    torch.testing.assert_close(sums.double(), g.sum(dim=2), rtol=accepted, atol=accepted)


def test_they_do_not_depend_on_how_tensors_lie_in_memory() -> None:
    g, x = drawn(6, 8, 9)
    expected = _products_and_sums(g[:, 2:5].contiguous(), x[:, 2:5].contiguous())
    torch.testing.assert_close(_products_and_sums(g[:, 2:5], x[:, 2:5]), expected)
    turned = (g.mT.contiguous().mT, x.mT.contiguous().mT)
    torch.testing.assert_close(_products_and_sums(*turned), _products_and_sums(g, x))
