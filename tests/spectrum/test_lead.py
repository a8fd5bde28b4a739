"""What matrices that share their rows tell beforehand, against all of their eigenvalues."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from nndiag.measures.blocks import OuterBlocks
from nndiag.spectrum import Lead, Tally, answered, lanczos, random_vectors, shared_lead, summed_lead

NODES, SIZE, ROWS = 70, 40, 100


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stack(kind: str) -> OuterBlocks:
    """Blocks ``(1/N) Σ_n h_{n,i} x_n x_nᵀ`` of rows that have a few directions in common, or none."""
    rows = draw(ROWS, SIZE)
    weights = draw(ROWS, NODES, seed=1).clamp_min(0)
    if kind == "common":
        rows = rows * 0.1 + draw(ROWS, 3, seed=2) @ draw(3, SIZE, seed=3)
    if (
        kind == "lonely"
    ):  # what most nodes have in common is not what makes the first node's largest eigenvalue
        rows = rows * 0.1 + draw(ROWS, 12, seed=2) @ draw(12, SIZE, seed=3)
        rows[0] = 30 * torch.nn.functional.normalize(draw(SIZE, seed=4), dim=0)
        weights[0] = 0.0
        weights[0, 0] = 1.0
        weights[1:, 0] *= 0.05
    if kind == "silent":
        weights[:, ::3] = 0.0
    return OuterBlocks(rows, weights, torch.zeros(ROWS, dtype=torch.long), ROWS)


def lead_of(blocks: OuterBlocks) -> Lead:
    return shared_lead(blocks.inputs, blocks.weights, blocks.samples, blocks.traces())


KINDS = pytest.mark.parametrize("kind", ["spread", "common", "lonely", "silent"])


@KINDS
def test_bounds_hold(kind: str) -> None:
    blocks = stack(kind)
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))
    lead = lead_of(blocks)
    slack = 1e-12 * truth.amax()
    assert (lead.least <= truth[:, -1] + slack).all()
    assert (lead.second <= truth[:, -2] + slack).all()
    assert (lead.others >= truth[:, -2] - slack).all()
    assert (truth[lead.short, 0].abs() <= slack).all()
    quotients = torch.einsum(
        "np,npq,nq->n", lead.vectors, blocks.matrices(0, NODES), lead.vectors
    )  # of the vectors that are said to be near
    assert (quotients[lead.near] <= truth[lead.near, -1] + slack).all()


def test_rows_with_common_directions_are_proven() -> None:
    blocks = stack("common")
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))
    lead = lead_of(blocks)
    assert (lead.others < truth[:, -1]).double().mean() > 0.8
    assert lead.near.all()
    assert ((lead.second / truth[:, -2]) > 0.9).all()


def test_few_rows_at_work_make_the_smallest_eigenvalue_zero() -> None:
    blocks = stack("spread")
    weights = blocks.weights.clone()
    weights[SIZE - 1 :, 0] = 0.0  # one row fewer than parameters
    weights[:, 1] += 0.1
    lead = lead_of(replace(blocks, weights=weights))
    assert lead.short[:2].tolist() == [True, False]


@KINDS
@pytest.mark.parametrize("tolerance", [2e-2, 5e-4])
def test_the_largest_eigenvalue_is_found_and_with_fewer_products_where_rows_agree(
    kind: str, tolerance: float
) -> None:
    blocks = stack(kind)
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))
    start = random_vectors(NODES, SIZE, blocks.inputs, torch.Generator().manual_seed(0))
    asked = {}
    for name, lead in (("with", lead_of(blocks)), ("without", None)):
        counting = Counting(blocks, [])
        found = answered(lanczos(counting, start, tolerance=tolerance, lead=lead), counting)
        asked[name] = sum(counting.asked)
        assert found.converged.all()
        scale = truth[:, -1]
        assert ((found.smallest - truth[:, 0]).abs() <= max(tolerance, 1e-2) * scale).all()
        if lead is not None:
            assert ((found.largest - scale).abs() <= max(tolerance, 1e-2) * scale).all()
            assert ((found.largest - scale).abs() <= found.largest_error + 1e-12 * scale.amax()).all()
    assert asked["with"] <= (0.8 if kind == "common" else 1.05) * asked["without"]


def test_a_node_that_differs_from_all_others_is_not_misled() -> None:
    blocks = stack("lonely")
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))
    lead = lead_of(blocks)
    assert not lead.near[0]  # one row alone makes more than what is shared
    misled = replace(lead, near=torch.ones_like(lead.near))
    start = random_vectors(NODES, SIZE, blocks.inputs, torch.Generator().manual_seed(0))
    for some in (lead, misled):
        found = answered(lanczos(blocks, start, tolerance=2e-2, lead=some), blocks)
        assert found.largest[0] == pytest.approx(float(truth[0, -1]), rel=1e-2)


def test_a_block_beyond_the_range_of_its_type_spoils_no_other() -> None:
    blocks = stack("common")
    weights = blocks.weights.clone()
    weights[0, 5] = torch.inf
    broken = replace(blocks, weights=weights)
    start = random_vectors(NODES, SIZE, blocks.inputs, torch.Generator().manual_seed(0))
    found = answered(lanczos(broken, start, tolerance=1e-3, lead=lead_of(broken)), broken)
    others = torch.arange(NODES) != 5
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))[:, -1]
    torch.testing.assert_close(found.largest[others], truth[others], rtol=1e-3, atol=0)
    assert found.largest[5].isnan()
    assert found.converged.tolist() == others.tolist()


@KINDS
def test_sums_tell_the_same_as_rows(kind: str) -> None:
    blocks = stack(kind)
    by_rows = lead_of(blocks)
    half = ROWS // 2
    tally = Tally.of(blocks.inputs[:half], blocks.weights[:half])
    tally.add(Tally.of(blocks.inputs[half:], blocks.weights[half:]))
    by_sums = summed_lead(blocks.matrices(0, NODES), tally, blocks.samples, blocks.traces())
    live = blocks.traces() > 0
    for field in fields(Lead):
        here, there = (getattr(lead, field.name)[live].double() for lead in (by_rows, by_sums))
        if field.name == "vectors":
            here, there = (torch.einsum("np,nq->npq", x, x) for x in (here, there))
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)


def test_restricted() -> None:
    lead = lead_of(stack("common"))
    index = torch.tensor([3, 1])
    for field in fields(Lead):
        assert torch.equal(getattr(lead.restricted(index), field.name), getattr(lead, field.name)[index])


def test_where_it_is_worth_its_price() -> None:
    blocks = stack("common")
    assert blocks.lead(blocks.traces()) is not None
    assert blocks.restricted(torch.arange(5)).lead(blocks.traces()[:5]) is None
    signed = replace(blocks, semidefinite=False)
    assert signed.lead(blocks.traces()) is None


class Counting:
    """A stack that notes how many vectors are multiplied."""

    def __init__(self, blocks: OuterBlocks, asked: list[int]) -> None:
        self.blocks, self.asked = blocks, asked
        self.nodes, self.size = blocks.nodes, blocks.size
        self.rank_bound, self.semidefinite = blocks.rank_bound, blocks.semidefinite

    def product(self, vectors: Tensor) -> Tensor:
        self.asked.append(len(vectors))
        return self.blocks.product(vectors)

    def restricted(self, index: Tensor) -> Counting:
        return Counting(self.blocks.restricted(index), self.asked)

    def matrices(self, start: int, stop: int) -> Tensor:
        return self.blocks.matrices(start, stop)
