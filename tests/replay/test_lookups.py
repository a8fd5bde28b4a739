"""Rows of tables that the probe never looks up are not observed, whatever looks up the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures

ROWS, WIDTH, PLACES, SAMPLES = 9, 3, 4, 10


class Table(nn.Module):
    """Rows of ``table`` are looked up in some way, activated and classified."""

    def __init__(self, table: nn.Module | nn.Parameter, look: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.head, self.look = table, nn.Linear(WIDTH, 3), look

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.look(self, x)))


def raw() -> nn.Parameter:
    return nn.Parameter(torch.randn(ROWS, WIDTH))


WAYS: dict[str, Callable[[], nn.Module]] = {
    "sums of a bag": lambda: Table(nn.EmbeddingBag(ROWS, WIDTH, mode="sum"), lambda m, x: m.table(x)),
    "largest of a bag": lambda: Table(nn.EmbeddingBag(ROWS, WIDTH, mode="max"), lambda m, x: m.table(x)),
    "bounded norms": lambda: Table(nn.Embedding(ROWS, WIDTH, max_norm=1.0), lambda m, x: m.table(x).sum(1)),
    "sparse gradients": lambda: Table(nn.Embedding(ROWS, WIDTH, sparse=True), lambda m, x: m.table(x).sum(1)),
    "indices": lambda: Table(raw(), lambda m, x: m.table[x].sum(1)),
    "indices and a slice": lambda: Table(raw(), lambda m, x: m.table[x, :].sum(1)),
    "index_select": lambda: Table(
        raw(), lambda m, x: m.table.index_select(0, x.flatten()).unflatten(0, x.shape).sum(1)
    ),
    "index_select by name": lambda: Table(
        raw(), lambda m, x: m.table.index_select(dim=0, index=x.flatten()).unflatten(0, x.shape).sum(1)
    ),
}  # fmt: skip


def scanned(model: nn.Module, x: Tensor, batch_size: int = SAMPLES, curvature="auto") -> LayerMeasures:
    y = torch.arange(len(x)) % 3
    samples = Probe((x,), y, named_loss("cross_entropy"), batch_size)
    return measure(model, samples, Plan(Level.CURVATURE, curvature=curvature)).layers[0]


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_are_never_looked_up_are_not_observed(way: str) -> None:
    torch.manual_seed(0)
    model, x = WAYS[way](), torch.randint(0, 7, (SAMPLES, PLACES))
    x[0, :], x[1, :] = torch.arange(4), torch.tensor([4, 5, 6, 6])
    found = scanned(model, x)
    assert found.observed is not None
    assert found.observed.tolist() == [True] * 7 + [False] * 2
    assert found.per_node["lookups"].tolist() == torch.bincount(x.flatten(), minlength=ROWS).tolist()


@pytest.mark.parametrize(
    "way", [lambda m, x: m.table.sum(0) + x[:, :3], lambda m, x: m.table[x].sum(1) + m.table.mean(0)]
)
def test_a_table_that_is_used_whole_is_observed(way: Callable[[nn.Module, Tensor], Tensor]) -> None:
    found = scanned(Table(raw(), way), torch.randint(0, 7, (SAMPLES, PLACES)))
    assert found.observed is None


class Places(nn.Module):
    """Positions are looked up once for all samples."""

    def __init__(self, sliced: bool) -> None:
        super().__init__()
        self.sliced = sliced
        self.table = raw() if sliced else nn.Embedding(ROWS, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table[:PLACES] if self.sliced else self.table(torch.arange(PLACES))
        return self.head(torch.tanh(x + rows).mean(dim=1))


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("batch_size", [10, 9, 4, 1])
def test_what_is_looked_up_once_counts_for_every_sample(sliced: bool, batch_size: int) -> None:
    torch.manual_seed(0)
    found = scanned(Places(sliced), torch.randn(SAMPLES, PLACES, WIDTH), batch_size)
    assert found.per_node["lookups"].tolist() == [SAMPLES] * PLACES + [0] * (ROWS - PLACES)


def test_sparse_gradients_have_exact_blocks() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, ROWS, (SAMPLES, PLACES))
    sparse = WAYS["sparse gradients"]().double()
    dense = Table(nn.Embedding(ROWS, WIDTH), sparse.look).double()
    dense.load_state_dict(sparse.state_dict())
    one, other = (scanned(model, x, curvature="hessian") for model in (sparse, dense))
    for name in ("lambda_max", "lambda_min", "trace"):
        assert one.per_node[name] == pytest.approx(other.per_node[name], rel=1e-9, nan_ok=True)
