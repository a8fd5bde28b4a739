"""What Lanczos coefficients, a trace and the knowledge that nothing is negative tell, against all eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nndiag.spectrum import Extremes, answered, lanczos, random_vectors
from nndiag.spectrum.krylov import Krylov
from nndiag.spectrum.lanczos import LARGE
from nndiag.spectrum.raised import raised

NODES = 40
TOLERANCE = 2e-2


@dataclass(frozen=True)
class Formed:
    """Semidefinite matrices that are there, and a count of what they were multiplied with."""

    blocks: Tensor
    asked: list[int]

    semidefinite = True

    @property
    def nodes(self) -> int:
        return len(self.blocks)

    @property
    def size(self) -> int:
        return self.blocks.shape[1]

    @property
    def rank_bound(self) -> int:
        return self.size

    def product(self, vectors: Tensor) -> Tensor:
        self.asked.append(len(vectors))
        return torch.einsum("npq,nq->np", self.blocks, vectors)

    def restricted(self, index: Tensor) -> Formed:
        return Formed(self.blocks[index], self.asked)

    def matrices(self, start: int, stop: int) -> Tensor:
        return self.blocks[start:stop]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def falling(size: int, ratio: float, tail: float = 0.0, dtype: torch.dtype = torch.float64) -> Formed:
    """Return matrices with eigenvalues ``ratioʲ + tail`` and eigenvectors at random."""
    draws = torch.randn(NODES, size, size, generator=generator(), dtype=torch.float64)
    directions = torch.linalg.qr(draws)[0]
    values = ratio ** torch.arange(size, dtype=torch.float64) + tail
    return Formed(((directions * values) @ directions.mT).to(dtype), [])


def krylov(stack: Formed, products: int) -> Krylov:
    start = random_vectors(NODES, stack.size, stack.blocks, generator())
    space = Krylov(start, stack.size)
    for _ in range(products):
        space.extend(stack.product(space.current))
    return space


@pytest.mark.parametrize("products", [1, 2, 3, 5])
def test_they_are_the_ritz_values_of_the_root_of_the_matrix_times_the_space(products: int) -> None:
    stack = falling(12, 0.5, 1e-3)
    space = krylov(stack, products)
    found = raised(space.alpha[:, :products], space.beta[:, :products], 1e-16)
    values, vectors = torch.linalg.eigh(stack.blocks)
    root = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    basis = torch.linalg.qr(root @ space.basis[:products].permute(1, 2, 0))[0]
    expected = torch.linalg.eigvalsh(basis.mT @ stack.blocks @ basis)
    torch.testing.assert_close(found.largest, expected[:, -1], rtol=1e-9, atol=0)
    assert (found.rounding < 1e-9).all()
    if products > 1:
        torch.testing.assert_close(found.second, expected[:, -2], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9, 1.0])
def test_they_lie_between_ritz_values_and_eigenvalues(ratio: float, dtype: torch.dtype) -> None:
    stack = falling(30, ratio, dtype=dtype)
    truth = torch.linalg.eigvalsh(stack.blocks.double())
    for products in (1, 2, 3, 6, 12, 30):
        space = krylov(stack, products)
        ritz = space.ritz(semidefinite=True)
        assert ritz.raised is not None
        slack = 4 * torch.finfo(dtype).eps
        largest, second = ritz.raised.surely
        assert (largest <= truth[:, -1] * (1 + slack)).all()
        assert (second <= truth[:, -2] + slack).all()
        if products < 3 and dtype == torch.float64:  # later on rounding is more than what they add
            assert (ritz.raised.largest >= ritz.values[:, -1] * (1 - 1e-9)).all()


def test_nothing_is_said_of_zeros_and_of_what_is_not_finite() -> None:
    alpha = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [1.0, 1e-9], [2.0, 1.0]], dtype=torch.float64)
    beta = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    found = raised(alpha, beta, 1e-7)
    largest, _ = found.surely
    assert largest[:2].tolist() == [0.0, 0.0]
    assert largest[2] == pytest.approx(1.0, rel=1e-4)
    assert largest[3] > 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("astray", [0.0, 1e-9, 1e-6, 1e-4, 1e-2])
def test_a_start_near_other_eigenvectors_does_not_raise_them_above_the_largest(
    astray: float, dtype: torch.dtype
) -> None:
    values = torch.cat([torch.tensor([1.0, 0.3]), torch.zeros(298)]).double()
    directions = torch.linalg.qr(torch.randn(NODES, 300, 300, generator=generator(), dtype=torch.float64))[0]
    blocks = ((directions * values) @ directions.mT).to(dtype)
    start = directions[:, :, 1] + astray * torch.randn(NODES, 300, generator=generator(), dtype=torch.float64)
    space = Krylov((start / start.norm(dim=1, keepdim=True)).to(dtype), 300)
    for _ in range(2):
        space.extend(torch.einsum("npq,nq->np", blocks, space.current))
        found = space.ritz(semidefinite=True).raised
        assert found is not None
        assert (found.surely[0] <= 1 + 1e-5).all()


def solved(stack: Formed, *, told: bool) -> Extremes:
    traces = stack.blocks.diagonal(dim1=1, dim2=2).double().sum(dim=1)
    start = random_vectors(stack.nodes, stack.size, stack.blocks, generator())
    return answered(
        lanczos(stack, start, tolerance=TOLERANCE, traces=(lambda: traces) if told else None), stack
    )


def test_what_the_trace_leaves_proves_the_largest_after_two_products() -> None:
    stack = falling(LARGE, 0.1)
    found = solved(stack, told=True)
    assert stack.asked[:2] == [NODES, NODES]
    assert stack.asked[2] < NODES / 2
    assert found.converged.all()
    truth = torch.linalg.eigvalsh(stack.blocks)
    assert (truth[:, -1] - found.largest <= found.largest_error).all()
    assert (found.largest <= truth[:, -1] * (1 + 1e-12)).all()
    assert (found.largest_error <= 2e-3).all()
    assert (found.smallest - truth[:, 0] <= found.smallest_error).all()
    stack.asked.clear()
    solved(stack, told=False)
    assert stack.asked[:3] == [NODES, NODES, NODES]


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.4])
def test_errors_that_are_told_with_the_trace_hold(ratio: float) -> None:
    stack = falling(LARGE, ratio, 1e-6)
    found = solved(stack, told=True)
    truth = torch.linalg.eigvalsh(stack.blocks)
    assert ((truth[:, -1] - found.largest).abs() <= found.largest_error + 1e-12).all()
    assert ((found.smallest - truth[:, 0]).abs() <= found.smallest_error + 1e-12).all()
    assert found.second is not None
    assert (found.second <= truth[:, -2] * (1 + 1e-9)).all()


def test_two_equal_eigenvalues_are_not_taken_for_one() -> None:
    stack = falling(LARGE, 0.01)
    equal = torch.diag(torch.cat([torch.ones(2), torch.zeros(LARGE - 2)])).double()
    stack = Formed(torch.cat([stack.blocks, equal[None]]), [])
    found = solved(stack, told=True)
    assert len(stack.asked) > 2
    assert found.largest[-1] == pytest.approx(1.0)
    assert found.largest_error[-1] > 0


def test_small_blocks_and_those_without_a_large_eigenvalue_are_not_looked_at_early() -> None:
    small = falling(LARGE - 1, 0.1)
    solved(small, told=True)
    assert small.asked[:3] == [NODES, NODES, NODES]
    flat = falling(LARGE, 1.0)
    assert not krylov(flat, 1).promising(torch.full((NODES,), float(LARGE), dtype=torch.float64)).any()
