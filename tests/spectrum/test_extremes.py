"""The solvers on matrices that are known, with no network in sight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nndiag.spectrum import dense_extremes, extremes_by, lanczos, power


class Stack:
    def __init__(self, matrices: Tensor, rank_bound: int | None = None) -> None:
        self.stack = matrices
        self.nodes, self.size = matrices.shape[:2]
        self.rank_bound = self.size if rank_bound is None else rank_bound
        self.semidefinite = rank_bound is not None

    def product(self, vectors: Tensor) -> Tensor:
        return torch.einsum("npq,nq->np", self.stack, vectors)

    def restricted(self, index: Tensor) -> Stack:
        return Stack(self.stack[index], self.rank_bound if self.semidefinite else None)

    def matrices(self, start: int, stop: int) -> Tensor:
        return self.stack[start:stop]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def symmetric(nodes: int, size: int, rank: int | None = None) -> Tensor:
    factor = torch.randn(nodes, size, rank or size, generator=generator(), dtype=torch.float64)
    if rank:
        return factor @ factor.mT
    return factor + factor.mT


def solve(name: str, blocks: Stack):
    if name == "dense":
        return dense_extremes(blocks, blocks.stack)
    return extremes_by(
        {"lanczos": lanczos, "power": power}[name], blocks, blocks.stack, generator=generator()
    )


@pytest.mark.parametrize("name", ["lanczos", "power", "dense"])
def test_extremes_are_signed_and_not_the_largest_magnitude(name: str) -> None:
    blocks = Stack(torch.diag_embed(torch.tensor([[2.0, 1.0, -6.0], [6.0, 1.0, -2.0]], dtype=torch.float64)))
    found = solve(name, blocks)
    assert found.largest.tolist() == pytest.approx([2.0, 6.0], abs=1e-3)
    assert found.smallest.tolist() == pytest.approx([-6.0, -2.0], abs=1e-3)


@pytest.mark.parametrize("name", ["lanczos", "power", "dense"])
def test_the_reported_error_covers_the_true_one(name: str) -> None:
    blocks = Stack(symmetric(7, 40))
    truth = torch.linalg.eigvalsh(blocks.stack)
    found = solve(name, blocks)
    slack = 1e-9 * truth.abs().amax()
    assert ((found.largest - truth[:, -1]).abs() <= found.largest_error + slack).all()
    assert ((found.smallest - truth[:, 0]).abs() <= found.smallest_error + slack).all()


def test_lanczos_converges_on_both_ends() -> None:
    blocks = Stack(symmetric(16, 200))
    truth = torch.linalg.eigvalsh(blocks.stack)
    found = extremes_by(
        lanczos, blocks, blocks.stack, generator=generator(), tolerance=1e-6, max_products=200
    )
    assert found.converged.all()
    torch.testing.assert_close(found.largest, truth[:, -1], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.smallest, truth[:, 0], rtol=1e-6, atol=0)


def test_zero_rank_one_and_full_blocks_in_one_stack() -> None:
    stack = torch.zeros(3, 30, 30, dtype=torch.float64)
    stack[1, 4, 4] = 5.0
    stack[2] = symmetric(1, 30)[0]
    found = extremes_by(lanczos, Stack(stack), stack, generator=generator(), tolerance=1e-9)
    truth = torch.linalg.eigvalsh(stack)
    assert found.largest[0] == 0
    assert found.smallest[0] == 0
    torch.testing.assert_close(found.largest, truth[:, -1], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.smallest, truth[:, 0], rtol=1e-4, atol=1e-9)
    assert found.converged.all()


def test_a_stack_of_multiples_of_the_identity_is_not_given_a_spurious_zero() -> None:
    stack = (
        torch.eye(12, dtype=torch.float64)[None]
        * torch.tensor([3.0, -2.0], dtype=torch.float64)[:, None, None]
    )
    found = extremes_by(lanczos, Stack(stack), stack, generator=generator())
    assert found.largest.tolist() == pytest.approx([3.0, -2.0])
    assert found.smallest.tolist() == pytest.approx([3.0, -2.0])


def test_a_known_rank_deficit_makes_the_smallest_eigenvalue_zero() -> None:
    stack = symmetric(4, 300, rank=150)
    found = extremes_by(lanczos, Stack(stack, rank_bound=150), stack, generator=generator(), max_products=12)
    assert found.smallest.tolist() == [0.0] * 4


def test_not_converged_is_said() -> None:
    stack = torch.diag_embed(torch.linspace(1, 2, 400, dtype=torch.float64))[None]
    found = extremes_by(lanczos, Stack(stack), stack, generator=generator(), tolerance=1e-8, max_products=6)
    assert not found.converged.any()
    assert found.products == 6


def test_quadrature_weights_sum_to_one() -> None:
    found = extremes_by(
        lanczos, Stack(symmetric(5, 60)), torch.zeros(1, dtype=torch.float64), generator=generator()
    )
    torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(5, dtype=torch.float64))


def test_vectors_of_both_ends_where_asked() -> None:
    blocks = Stack(symmetric(5, 40))
    truth = torch.linalg.eigh(blocks.stack).eigenvectors
    found = extremes_by(
        lanczos,
        blocks,
        blocks.stack,
        generator=generator(),
        tolerance=1e-8,
        max_products=40,
        both_vectors=True,
    )
    assert found.smallest_vectors is not None
    assert (found.vectors * truth[:, :, -1]).sum(1).abs().tolist() == pytest.approx([1.0] * 5)
    assert (found.smallest_vectors * truth[:, :, 0]).sum(1).abs().tolist() == pytest.approx([1.0] * 5)
    assert solve("lanczos", blocks).smallest_vectors is None


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**-110, 2.0**80])
def test_extremes_do_not_depend_on_the_size_of_the_numbers(scale: float) -> None:
    stack = symmetric(6, 50, rank=20).float()
    stack[3] = 0.0
    plain, scaled = (solve("lanczos", Stack(matrices)) for matrices in (stack, stack * scale))
    for name in ("largest", "smallest", "largest_error", "smallest_error", "values"):
        torch.testing.assert_close(
            getattr(scaled, name) / scale,
            getattr(plain, name),
            rtol=1e-3,
            atol=1e-4 * float(plain.largest.max()),
        )
    torch.testing.assert_close(scaled.largest / scale, plain.largest, rtol=1e-5, atol=0)
    assert scaled.converged.all()


class Diagonal(Stack):
    """A large diagonal matrix."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.nodes, self.size = values, 1, len(values)
        self.rank_bound, self.semidefinite = self.size, False

    def product(self, vectors: Tensor) -> Tensor:
        return vectors * self.values

    def restricted(self, index: Tensor) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize("seed", range(4))
def test_an_isolated_negative_eigenvalue_is_not_believed_away(seed: int) -> None:
    """One of 20,000 is at −0.5, beside one at 100 and all others below 0.1: it shows after some 20 products."""
    values = 0.1 * torch.rand(20_000, dtype=torch.float64, generator=generator())
    values[7], values[9] = 100.0, -0.5
    found = extremes_by(
        lanczos,
        Diagonal(values),
        values,
        generator=torch.Generator().manual_seed(seed),
        tolerance=2e-4,
        least_products=40,
        both_vectors=True,
    )
    assert bool(found.converged.all())
    assert found.products >= 40
    assert float(found.smallest) == pytest.approx(-0.5, abs=1e-6)
    assert float(found.largest) == pytest.approx(100.0, abs=1e-6)


def test_an_exhausted_krylov_space_needs_no_more_products() -> None:
    blocks = Stack(torch.diag_embed(torch.tensor([[2.0, 1.0, -6.0, 0.5]], dtype=torch.float64)))
    found = extremes_by(lanczos, blocks, blocks.stack, generator=generator(), least_products=40)
    assert found.products == 4
    assert bool(found.converged.all())


@pytest.mark.parametrize("spectrum", [(2.0, 1.0, -6.0), (6.0, 1.0, -2.0), (1.0, 0.5, -0.9)])
def test_power_iteration_goes_on_until_it_has_settled(spectrum: tuple[float, ...]) -> None:
    """The norm of a shifted block is twice that of the block, by which the residuals are judged."""
    blocks = Stack(torch.diag_embed(torch.tensor([spectrum], dtype=torch.float64)))
    found = extremes_by(power, blocks, blocks.stack, generator=generator(), tolerance=1e-4)
    assert bool(found.converged.all())
    assert float(found.largest) == pytest.approx(max(spectrum), abs=1e-3)
    assert float(found.smallest) == pytest.approx(min(spectrum), abs=1e-3)
    assert max(float(found.largest_error), float(found.smallest_error)) <= 1e-4 * 6.1
