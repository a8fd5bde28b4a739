"""Exact blocks of layers that are applied once, at several positions, against dense float64 autograd Hessians."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from tests.cases import Case, build, dense_blocks, found_layers, probe
from tests.measures.exact_cases import start
from torch import Tensor, nn

from nndiag.measures.blocks import GramBlocks
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
        known = positions_of(model, samples, [layer])[layer.name]
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
        known = positions_of(model, samples, found_layers(model, samples))
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
        known = positions_of(model, samples, found_layers(model, samples))
    assert known.get("inner") == (None if crossed else Positions(3, 1))
    assert known["inner.out_proj"] == Positions(3, 1)
    agrees(model, case, 11)


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.name)
def test_blocks_may_be_added_up_batch_by_batch(case: Case) -> None:
    """Where there is no room to keep inputs: nothing but rounding changes."""
    model, samples = build(case), probe(case, "mse", samples=11, batch_size=4)
    layer, nodes = found_layers(model, samples)[0], torch.arange(3)
    with undisturbed(model, 0):
        known = positions_of(model, samples, [layer])[layer.name]
        kept, summed = (
            signed_blocks(model, samples, layer, known, nodes, 3, summed=summed) for summed in (False, True)
        )
    assert isinstance(kept, PositionBlocks)
    assert isinstance(summed, GramBlocks)
    vectors = torch.randn(3, layer.size, dtype=torch.float64)
    for one, other in (
        (kept.product(vectors), summed.product(vectors)),
        (kept.matrices(0, 3), summed.matrices(0, 3)),
        (kept.traces(), summed.traces()),
        (kept.forms_by_fold(vectors, 4), summed.forms_by_fold(vectors, 4)),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["auto", "hessian"])
def test_room_changes_nothing(mode: Literal["auto", "hessian"]) -> None:
    case = HELD[0]
    model, samples = build(case), probe(case, "cross_entropy", samples=11, batch_size=4)
    layers = found_layers(model, samples)
    with undisturbed(model, 0):
        wide, narrow = (
            refine(model, samples, layers, start(layers, samples), ExactSettings(mode, room=room)).layers
            for room in (2**29, 1)
        )
    for name, one in wide.items():
        other = narrow[name]
        assert one.nodes.tolist() == other.nodes.tolist()
        assert one.curvature is not None
        assert other.curvature is not None
        assert one.curvature.per_node.keys() == other.curvature.per_node.keys()
        for measure, values in one.curvature.per_node.items():
            scale = np.abs(one.curvature.per_node["lambda_max"]).max()
            np.testing.assert_allclose(
                other.curvature.per_node[measure], values, rtol=1e-6, atol=1e-9 * scale
            )


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
