"""Which axis of a matrix counts nodes: the one that the output of its product has, however it is multiplied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.cases import dense_blocks
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.replay.orientation import layers_in_use

Product = Callable[[Tensor, Tensor], Tensor]
COLUMNS: dict[str, Product] = {
    "matmul": lambda x, w: x @ w,
    "linear of the transpose": lambda x, w: F.linear(x, w.t()),
    "of T": lambda x, w: F.linear(x, w.T),
    "of mT": lambda x, w: F.linear(x, w.mT),
    "of transpose": lambda x, w: F.linear(x, w.transpose(0, 1)),
    "of negative axes": lambda x, w: F.linear(x, w.transpose(-1, -2)),
    "of transpose by name": lambda x, w: F.linear(x, torch.transpose(input=w, dim0=0, dim1=1)),
    "of permute": lambda x, w: F.linear(x, w.permute(1, 0)),
    "turned twice": lambda x, w: x @ w.t().t(),
    "tensordot": lambda x, w: torch.tensordot(x, w, 1),
    "tensordot over axes": lambda x, w: torch.tensordot(x, w, dims=([1], [0])),
    "einsum": lambda x, w: torch.einsum("ni,io->no", x, w),
}
ROWS: dict[str, Product] = {
    "linear": lambda x, w: F.linear(x, w),
    "matmul of the transpose": lambda x, w: x @ w.t(),
    "tensordot": lambda x, w: torch.tensordot(x, w, dims=([1], [-1])),
    "einsum": lambda x, w: torch.einsum("ni,oi->no", x, w),
}


class Raw(nn.Module):
    def __init__(self, product: Product, shape: tuple[int, int]) -> None:
        super().__init__()
        self.matrix, self.product = nn.Parameter(torch.randn(shape)), product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.matrix)


@pytest.mark.parametrize("way", COLUMNS)
def test_columns_are_nodes(way: str) -> None:
    (layer,) = layers_in_use(Raw(COLUMNS[way], (5, 3)), [torch.randn(4, 5)])
    assert (layer.nodes, layer.fan_in) == (3, 5)


@pytest.mark.parametrize("way", ROWS)
def test_rows_are_nodes(way: str) -> None:
    (layer,) = layers_in_use(Raw(ROWS[way], (3, 5)), [torch.randn(4, 5)])
    assert (layer.nodes, layer.fan_in) == (3, 5)


class Own(nn.Module):
    """A layer of one's own with a square weight and a bias."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.weight, self.bias, self.product = (
            nn.Parameter(torch.randn(4, 4)),
            nn.Parameter(torch.randn(4)),
            product,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight) + self.bias


@pytest.mark.parametrize("way", COLUMNS)
def test_a_column_has_the_bias_of_its_output(way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Own(COLUMNS[way]), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(9, 4, dtype=torch.float64)
    samples = Probe((x,), torch.arange(9) % 3, named_loss("cross_entropy"))
    first, _ = measure(model, samples, Plan(Level.CURVATURE, curvature="auto")).layers
    assert (first.name, first.nodes) == ("0", 4)
    own, other = (dense_blocks(model, samples, layers_in_use(model, [x]))[name] for name in ("0", "2"))
    assert other.shape[1] == own.shape[1] == 5
    values = torch.linalg.eigvalsh(own).numpy()
    scale = np.abs(values).max()
    np.testing.assert_allclose(first.per_node["lambda_max"], values[:, -1], atol=1e-9 * scale)
    np.testing.assert_allclose(first.per_node["lambda_min"], values[:, 0], atol=1e-9 * scale)
    # what moves the output of a unit moves nothing of the others: their mixed derivatives are those of outputs
    parameters = dict(model.named_parameters())

    def value(weight: Tensor, bias: Tensor) -> Tensor:
        swapped = {**parameters, "0.weight": weight, "0.bias": bias}
        return F.cross_entropy(torch.func.functional_call(model, swapped, x), samples.targets)

    (ww, wb), (_, bb) = torch.autograd.functional.hessian(
        value, (parameters["0.weight"].detach(), parameters["0.bias"].detach())
    )
    block = torch.cat([ww[:, 1, :, 1], wb[:, 1, 1, None]], dim=1)
    block = torch.cat([block, torch.cat([wb[:, 1, 1], bb[1, 1, None]])[None]])
    np.testing.assert_allclose(own[1], block, atol=1e-9 * scale)
