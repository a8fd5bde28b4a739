"""What rows gave with vectors that were multiplied tells what they give with every vector between these."""

from __future__ import annotations

import pytest
import torch
from tests.cases import CASES, build, probe
from torch import Tensor

from nndiag.measures import Plan, curvature, measure
from nndiag.measures.capture import Capture
from nndiag.measures.implicit import ImplicitBlocks
from nndiag.measures.remembering import REMEMBERED, Remembering
from nndiag.records.level import Level

CNN = next(case for case in CASES if case.name == "cnn")


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> ImplicitBlocks:
    """The blocks of a convolution, as a measurement makes them."""
    found: list[ImplicitBlocks] = []

    class Noted(Remembering):
        def __init__(self, blocks: ImplicitBlocks) -> None:
            found.append(blocks)
            super().__init__(blocks)

    monkeypatch.setattr(Capture, "cheapest", lambda *_: "implicit")
    monkeypatch.setattr(curvature, "Remembering", Noted)
    measure(build(CNN), probe(CNN, "mse"), Plan(Level.CURVATURE))
    return found[0]


def drawn(blocks: ImplicitBlocks, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(blocks.nodes, blocks.size, generator=generator, dtype=torch.float64)


def counted(blocks: ImplicitBlocks, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = ImplicitBlocks.contracted

    def noted(self: ImplicitBlocks, vectors: Tensor) -> list[Tensor]:
        calls.append(1)
        return original(self, vectors)

    monkeypatch.setattr(ImplicitBlocks, "contracted", noted)
    return calls


def test_forms_between_vectors_cost_no_product(
    blocks: ImplicitBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering = Remembering(blocks)
    one, two, three = (drawn(blocks, seed) for seed in range(3))
    two[::2] = 0.0  # some nodes are done after the first product
    for vectors in (one, two, three):
        torch.testing.assert_close(remembering.product(vectors), blocks.product(vectors))
    between = 0.3 * one - 2 * two + three
    expected = blocks.forms_by_fold(between, 4)
    calls = counted(blocks, monkeypatch)
    torch.testing.assert_close(remembering.forms_by_fold(between, 4), expected, rtol=1e-9, atol=1e-12)
    assert not calls


@pytest.mark.parametrize("products", [0, REMEMBERED + 1])
def test_where_nothing_is_remembered_they_are_made_anew(
    blocks: ImplicitBlocks, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering = Remembering(blocks)
    for seed in range(products):
        remembering.product(drawn(blocks, seed))
    vectors = drawn(blocks, 0)
    expected = blocks.forms_by_fold(vectors, 4)
    calls = counted(blocks, monkeypatch)
    torch.testing.assert_close(remembering.forms_by_fold(vectors, 4), expected, rtol=0, atol=0)
    assert len(calls) == 1


def test_a_block_that_is_not_finite_spoils_no_other(blocks: ImplicitBlocks) -> None:
    remembering = Remembering(blocks)
    one, two = drawn(blocks, 0), drawn(blocks, 1)
    two[1] = torch.nan
    for vectors in (one, two):
        remembering.product(vectors)
    others = [place for place in range(blocks.nodes) if place != 1]
    found = remembering.forms_by_fold(one + two, 4)
    expected = blocks.forms_by_fold(one + two.nan_to_num(), 4)
    torch.testing.assert_close(found[:, others], expected[:, others], rtol=1e-9, atol=1e-12)
    assert found[:, 1].isnan().all()
