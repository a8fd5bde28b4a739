"""What matrices that share their rows tell beforehand, against all of their eigenvalues."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from nndiag.measures.blocks import OuterBlocks
from nndiag.spectrum import (
    Extremes,
    Lead,
    Tally,
    answered,
    lanczos,
    random_vectors,
    shared_lead,
    summed_lead,
)
from nndiag.spectrum.ends import SHARP

NODES, SIZE, ROWS = 70, 40, 100
TOLERANCE = 2e-2


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
        rows = rows * 0.1 + draw(ROWS, 30, seed=2) @ draw(30, SIZE, seed=3)
        rows[0] = 30 * torch.nn.functional.normalize(draw(SIZE, seed=4), dim=0)
        weights[0] = 0.0
        weights[0, 0] = 1.0
        weights[1:, 0] *= 0.05
    if kind == "silent":
        weights[:, ::3] = 0.0
    return OuterBlocks(rows, weights, torch.zeros(ROWS, dtype=torch.long), ROWS)


def lead_of(blocks: OuterBlocks, tolerance: float = TOLERANCE) -> Lead:
    return shared_lead(blocks.inputs, blocks.weights, blocks.samples, blocks.traces(), tolerance)[0]


def led(blocks: OuterBlocks, lead: Lead, tolerance: float) -> Extremes:
    solver = lanczos(blocks, lead.vectors, tolerance=tolerance, lead=lead, traces=blocks.traces)
    return answered(solver, blocks)


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
    assert (lead.smallest >= truth[:, 0] - slack).all()
    ones = torch.ones(NODES, dtype=torch.float64)
    torch.testing.assert_close(lead.vectors.norm(dim=1), ones)


def test_rows_with_common_directions_are_proven() -> None:
    blocks = stack("common")
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))
    lead = lead_of(blocks)
    assert (lead.others < truth[:, -1]).all()
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
def test_the_ends_are_found_and_with_fewer_products(kind: str, tolerance: float) -> None:
    blocks = stack(kind)
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))
    scale = truth[:, -1]
    start = random_vectors(NODES, SIZE, blocks.inputs, torch.Generator().manual_seed(0))
    counting = {name: Counting(blocks, []) for name in ("with", "without")}
    lead = lead_of(blocks, tolerance)
    found = answered(
        lanczos(counting["with"], lead.vectors, tolerance=tolerance, lead=lead), counting["with"]
    )
    assert found.converged.all()
    rounding = 1e-12 * scale.amax()
    assert ((found.largest - scale).abs() <= max(tolerance, 1e-2) * scale).all()
    assert ((found.largest - scale).abs() <= found.largest_error + rounding).all()
    assert ((found.smallest - truth[:, 0]).abs() <= max(tolerance, 1e-2) * scale).all()
    assert (found.smallest_error <= tolerance * found.largest + rounding).all()
    answered(lanczos(counting["without"], start, tolerance=tolerance), counting["without"])
    asked, of_random = (sum(one.asked) for one in counting.values())
    assert asked <= (0.5 if kind == "common" else 1.2) * of_random


def test_blocks_whose_largest_eigenvalue_is_proven_are_multiplied_once() -> None:
    """All rows lie in three directions here, so that nothing is left to be found."""
    rows = draw(ROWS, 3, seed=2) @ draw(3, SIZE, seed=3)
    blocks = replace(stack("common"), inputs=rows)
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))[:, -1]
    counting = Counting(blocks, [])
    lead = lead_of(blocks)
    found = answered(lanczos(counting, lead.vectors, tolerance=2e-2, lead=lead), counting)
    assert counting.asked == [NODES]
    assert found.unmoved is not None
    assert found.unmoved.all()
    assert ((found.largest - truth).abs() <= found.largest_error).all()
    assert (found.largest_error <= SHARP * 2e-2 * truth).all()
    assert (
        found.largest_error >= torch.finfo(torch.float64).eps * found.largest
    ).all()  # as a sum is rounded


def test_a_node_that_differs_from_all_others_is_not_misled() -> None:
    blocks = stack("lonely")
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))
    lead = lead_of(blocks)
    row = torch.nn.functional.normalize(blocks.inputs[0], dim=0)
    assert abs(float(lead.vectors[0] @ row)) > 0.9  # one row alone makes more than what is shared
    assert led(blocks, lead, 2e-2).largest[0] == pytest.approx(float(truth[0, -1]), rel=1e-2)


def test_a_start_beside_another_eigenvalue_is_not_believed() -> None:
    blocks = stack("lonely")
    values, vectors = torch.linalg.eigh(blocks.matrices(0, NODES))
    wrong = replace(lead_of(blocks), vectors=vectors[:, :, -2], images=None)
    near = vectors[:, :, -2] + 1e-3 * vectors[:, :, -1]  # as rounding would have it
    wrong = replace(wrong, vectors=near / near.norm(dim=1, keepdim=True))
    found = led(blocks, wrong, 5e-4)
    settled = found.largest >= (1 - 1e-2) * values[:, -1]
    told = (found.largest - values[:, -2]).abs() <= 1e-2 * values[:, -1]
    assert settled[0]  # its largest eigenvalue is one row's, which is known to be larger
    assert (settled | told).all()
    assert not found.unmoved[~told].any()


def test_a_block_beyond_the_range_of_its_type_spoils_no_other() -> None:
    blocks = stack("common")
    weights = blocks.weights.clone()
    weights[0, 5] = torch.inf
    broken = replace(blocks, weights=weights)
    found = led(broken, lead_of(broken), 1e-3)
    others = torch.arange(NODES) != 5
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))[:, -1]
    torch.testing.assert_close(found.largest[others], truth[others], rtol=1e-3, atol=0)
    assert found.largest[5].isnan()
    assert found.converged.tolist() == others.tolist()


def test_nodes_that_fire_on_one_sample_are_bounded() -> None:
    """The second vector of a projection of rank one is nothing but rounding."""
    blocks = stack("spread")
    weights = torch.zeros_like(blocks.weights)
    weights[torch.arange(NODES) % ROWS, torch.arange(NODES)] = 1.0
    lonely = replace(blocks, inputs=blocks.inputs.float(), weights=weights.float())
    truth = torch.linalg.eigvalsh(lonely.matrices(0, NODES))[:, -1]
    lead = lead_of(lonely)
    assert (lead.least <= (1 + 1e-5) * truth).all()
    assert (lead.second <= 1e-5 * truth).all()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_small_and_large_curvature_in_single_precision(scale: float) -> None:
    blocks = stack("common")
    far = replace(blocks, inputs=blocks.inputs.float(), weights=(blocks.weights * scale).float())
    truth = torch.linalg.eigvalsh(blocks.matrices(0, NODES))[:, -1]
    lead = lead_of(far)
    assert (lead.others / scale < truth).all()
    assert (lead.least / scale > 0.9 * truth).all()


@KINDS
def test_what_comes_with_the_lead_is_what_would_be_multiplied(kind: str) -> None:
    blocks = stack(kind)
    folds = torch.arange(ROWS) % 4
    blocks = replace(blocks, folds=folds)
    lead, forms = blocks.lead(blocks.traces(), TOLERANCE, 4)
    assert lead is not None
    assert lead.images is not None
    assert forms is not None
    torch.testing.assert_close(lead.images, blocks.product(lead.vectors), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(forms, blocks.forms_by_fold(lead.vectors, 4), rtol=1e-9, atol=1e-12)


@KINDS
def test_sums_tell_the_same_as_rows(kind: str) -> None:
    blocks = stack(kind)
    by_rows = lead_of(blocks)
    half = ROWS // 2
    tally = Tally.of(blocks.inputs[:half], blocks.weights[:half])
    tally.add(Tally.of(blocks.inputs[half:], blocks.weights[half:]))
    by_sums = summed_lead(blocks.matrices(0, NODES), tally, blocks.samples, blocks.traces(), TOLERANCE)
    live = blocks.traces() > 0
    names = {field.name for field in fields(Lead)} - {"images"}
    for name in names:
        here, there = (getattr(lead, name)[live].double() for lead in (by_rows, by_sums))
        if name == "vectors":
            here, there = (torch.einsum("np,nq->npq", x, x) for x in (here, there))
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)


def test_restricted() -> None:
    lead = lead_of(stack("common"))
    index = torch.tensor([3, 1])
    some = lead.restricted(index)
    assert some.images is None
    for name in {field.name for field in fields(Lead)} - {"images"}:
        assert torch.equal(getattr(some, name), getattr(lead, name)[index])


def test_where_it_is_worth_its_price() -> None:
    blocks = stack("common")
    assert blocks.lead(blocks.traces(), TOLERANCE, 1)[0] is not None
    assert blocks.restricted(torch.arange(5)).lead(blocks.traces()[:5], TOLERANCE, 1)[0] is None
    signed = replace(blocks, semidefinite=False)
    assert signed.lead(blocks.traces(), TOLERANCE, 1)[0] is None


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


@KINDS
@pytest.mark.parametrize("scale", [2.0**-75, 2.0**75])
def test_what_is_found_does_not_depend_on_the_size_of_the_numbers(kind: str, scale: float) -> None:
    blocks = stack(kind)
    plain = replace(blocks, inputs=blocks.inputs.float(), weights=blocks.weights.float())
    larger = replace(plain, weights=plain.weights * scale)
    expected, found = (led(one, lead_of(one), TOLERANCE) for one in (plain, larger))
    torch.testing.assert_close(found.largest / scale, expected.largest, rtol=1e-4, atol=1e-12)
    assert torch.equal(found.converged, expected.converged)
