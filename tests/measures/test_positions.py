"""Exact blocks of layers that are applied once, at several positions, against dense float64 autograd Hessians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import Case, build, dense_blocks, found_layers, probe
from tests.measures.exact_cases import start
from torch import Tensor, nn

from nndiag.measures.curvature import CurvatureSettings
from nndiag.measures.exact import ExactSettings, refine
from nndiag.measures.exact.applied import Positions, positions_of, signed_blocks
from nndiag.measures.exact.positions import PositionBlocks
from nndiag.replay.state import undisturbed


class Columns(nn.Module):
    """A node in every column, as in GPT-2; positions and samples share an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(0, 1) @ self.weight
        return torch.tanh(z).unflatten(0, x.shape[:2]).sum(dim=1)[:, :3]


class Tokens(nn.Module):
    """A layer over positions, which come first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x.movedim(1, 0)))
        return self.out(torch.sin(h.cumsum(dim=0)).mean(dim=0))


def over(layer: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(layer, nn.GELU(), nn.Flatten(), nn.Linear(features, 3), nn.Tanh())


HELD = (
    Case("linear", lambda: over(nn.Linear(8, 5), 15), (3, 8), 3),
    Case("without a bias", lambda: over(nn.Linear(50, 5, bias=False), 15), (3, 50), 3),
    Case("two axes of positions", lambda: over(nn.Linear(8, 5), 20), (2, 2, 8), 3),
    Case("conv1d", lambda: over(nn.Conv1d(3, 4, 3, stride=2), 8), (3, 5), 3),
    Case("conv2d", lambda: over(nn.Conv2d(2, 4, 3, padding="same", dilation=2), 36), (2, 3, 3), 3),
    Case("conv3d", lambda: over(nn.Conv3d(2, 3, 2, bias=False), 12), (2, 3, 2, 3), 3),
    Case("transposed", lambda: over(nn.ConvTranspose1d(4, 3, 3, stride=2), 15), (4, 2), 3),
    Case("positions first", Tokens, (3, 8), 3),
)
POSITIONS = (3, 3, 4, 2, 9, 4, 5, 3)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize(
    ("case", "positions"), list(zip(HELD, POSITIONS, strict=True)), ids=lambda x: str(getattr(x, "name", x))
)
def test_nodes_are_known_from_as_many_products_as_positions(case: Case, positions: int, loss: str) -> None:
    model, samples = build(case), probe(case, loss, samples=11, batch_size=4)  # three are left for the last
    layer, blocks = found_layers(model, samples)[0], dense_blocks(model, samples)
    with undisturbed(model, 0):
        known = positions_of(model, samples, [layer], 2**20)[layer.name]
        found = signed_blocks(model, samples, layer, known, torch.arange(1, layer.nodes), 3)
    assert known == Positions(positions, 1 if case.build is Tokens else 0)
    assert isinstance(found, PositionBlocks)
    own = blocks[layer.name][1:]
    scale = float(own.abs().max())
    close = {"rtol": 1e-9, "atol": 1e-12 * scale}
    np.testing.assert_allclose(found.matrices(0, found.nodes), own, **close)
    vectors = torch.randn(found.nodes, found.size, dtype=torch.float64)
    np.testing.assert_allclose(found.product(vectors), (own @ vectors[..., None])[..., 0], **close)
    np.testing.assert_allclose(found.traces(), own.diagonal(dim1=1, dim2=2).sum(dim=1), **close)
    index = torch.tensor([2, 0]) % found.nodes
    np.testing.assert_allclose(found.restricted(index).matrices(0, 2), own[index], **close)
    whole = found.forms_by_fold(vectors, 4).sum(dim=0) / 11
    np.testing.assert_allclose(whole, torch.einsum("np,npq,nq->n", vectors, own, vectors), **close)


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.name)
def test_extremes_and_traces_are_those_of_the_hessian(case: Case) -> None:
    agrees(build(case), case, 11)


def test_samples_are_not_taken_for_positions_where_there_are_as_many() -> None:
    """Positions come first inside, and there are seven of both."""
    case = Case("ambiguous", Tokens, (7, 8), 3)
    agrees(build(case), case, 7)


@pytest.mark.parametrize("positions", [1, 3])
def test_transposed_weights(positions: int) -> None:
    """Of rows that samples share with positions nobody says which are whose: such blocks are formed otherwise."""
    case = Case("columns", Columns, (positions, 8), 3)
    model, samples = build(case), probe(case, "mse")
    with undisturbed(model, 0):
        known = positions_of(model, samples, found_layers(model, samples), 2**20)
    assert known == ({"": Positions(1, 0)} if positions == 1 else {})
    agrees(model, case, 11)


class Attends(nn.Module):
    """Torch's own attention, of which every projection is applied once; or of others' keys, with biases of its own."""

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.crossed = crossed
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=crossed)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        others = x.flip(1).sin() if self.crossed else x
        return self.out(self.inner(x, others, others)[0].mean(dim=1))


@pytest.mark.parametrize("crossed", [False, True])
def test_attention(crossed: bool) -> None:
    case = Case("attention", lambda: Attends(crossed), (3, 8), 3)
    model, samples = build(case), probe(case, "mse")
    with undisturbed(model, 0):
        known = positions_of(model, samples, found_layers(model, samples), 2**20)
    assert known.get("inner") == (None if crossed else Positions(3, 1))
    assert known["inner.out_proj"] == Positions(3, 1)
    agrees(model, case, 11)


def test_inputs_that_there_is_no_room_for_are_not_kept() -> None:
    case = HELD[0]
    model, samples = build(case), probe(case, "mse", samples=10)
    layer = found_layers(model, samples)[0]
    kept = 10 * 3 * 9 * 8  # samples, positions, parameters, bytes
    with undisturbed(model, 0):
        assert positions_of(model, samples, [layer], kept) == {layer.name: Positions(3, 0)}
        assert positions_of(model, samples, [layer], kept - 1) == {}


def agrees(model: nn.Module, case: Case, count: int) -> None:
    samples = probe(case, "cross_entropy", samples=count, batch_size=count)
    layers, blocks = found_layers(model, samples), dense_blocks(model, samples)
    settings = ExactSettings("hessian", CurvatureSettings(tolerance=1e-9))
    with undisturbed(model, 0):
        found = refine(model, samples, layers, start(layers, samples), settings)
    for layer in layers:
        curvature = found.layers[layer.name].curvature
        assert curvature is not None
        values = torch.linalg.eigvalsh(blocks[layer.name]).numpy()
        scale = 1e-6 * np.abs(values).max()
        for name, expected in (
            ("lambda_max", values[:, -1]), ("lambda_min", values[:, 0]), ("trace", values.sum(axis=1)),
        ):  # fmt: skip
            np.testing.assert_allclose(curvature.per_node[name], expected, atol=scale, err_msg=name)
