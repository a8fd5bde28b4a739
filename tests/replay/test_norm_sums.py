"""Products and sums over the positions of a sample, in one go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nndiag.replay.kinds.norm import _products_and_sums


def drawn(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    g, x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    mean, variance = torch.rand(2, shape[1], generator=generator, dtype=torch.float64) + 0.5
    return g, x, mean, variance


@pytest.mark.parametrize(
    "shape", [(3, 4, 100), (2, 5, 1), (1, 1, 1), (70, 3, 17), (0, 4, 3), (3, 0, 2), (3, 4, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_they_are_those_of_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g, x, mean, variance = drawn(*shape)
    products, sums = _products_and_sums(*(t.to(dtype) for t in (g, x, mean, variance)))
    accepted = 100 * torch.finfo(dtype).eps
    expected = (g * (x - mean[:, None])).sum(dim=2) / variance.sqrt()
    torch.testing.assert_close(products.double(), expected, rtol=accepted, atol=accepted)
    torch.testing.assert_close(sums.double(), g.sum(dim=2), rtol=accepted, atol=accepted)


def test_they_do_not_depend_on_how_tensors_lie_in_memory() -> None:
    g, x, mean, variance = drawn(6, 8, 9)
    own = mean[2:5], variance[2:5]
    expected = _products_and_sums(g[:, 2:5].contiguous(), x[:, 2:5].contiguous(), *own)
    torch.testing.assert_close(_products_and_sums(g[:, 2:5], x[:, 2:5], *own), expected)
    turned = (g.mT.contiguous().mT, x.mT.contiguous().mT)
    whole = _products_and_sums(g, x, mean, variance)
    torch.testing.assert_close(_products_and_sums(*turned, mean, variance), whole)
