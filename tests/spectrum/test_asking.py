"""A solver that asks for products gets the same answers whoever makes them, and however a stack is divided."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from tests.spectrum.test_extremes import Stack, generator, symmetric
from torch import Tensor

from nndiag.spectrum import (
    Among,
    Asking,
    Extremes,
    answered,
    extremes_by,
    joined,
    lanczos,
    placed,
    power,
    random_vectors,
    scaled,
)

SOLVERS = {"lanczos": lanczos, "power": power}


def equal(one: Extremes, two: Extremes, tolerance: float = 1e-9) -> None:
    """Check everything; vectors up to their sign, and not where a block is zero and every vector does."""
    for field in fields(Extremes):
        expected, found = getattr(one, field.name), getattr(two, field.name)
        if field.name == "products" or expected is None:
            continue
        if field.name == "vectors":
            expected, found = (v[one.largest != 0] for v in (expected, found))
            found = found * (found * expected).sum(dim=1, keepdim=True).sign()
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=field.name)


def uneven() -> Tensor:
    """Return matrices of which some converge early and others late."""
    stack = symmetric(12, 80)
    stack[::3] = torch.diag_embed(torch.linspace(0, 1, 80, dtype=torch.float64) ** 8)
    stack[1] = 0
    return stack


def in_step(solvers: list[tuple[Asking, slice]], stack: Tensor) -> list[Extremes]:
    """Answer several solvers of parts of a stack by products of the whole."""
    waiting = {place: (solver, next(solver)) for place, (solver, _) in enumerate(solvers)}
    found: dict[int, Extremes] = {}
    rows = torch.arange(len(stack))
    while waiting:
        for place, (solver, request) in list(waiting.items()):
            own = rows[solvers[place][1]]
            own = own if request.index is None else own[request.index]
            image = torch.einsum("npq,nq->np", stack, placed(request.vectors, own, len(stack)))
            try:
                waiting[place] = solver, solver.send(image[own])
            except StopIteration as ended:
                found[place] = ended.value
                del waiting[place]
    return [found[place] for place in range(len(solvers))]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("cuts", [(0, 12), (0, 5, 12), tuple(range(13))])
def test_parts_solved_in_step_are_the_whole(name: str, cuts: tuple[int, ...]) -> None:
    stack = uneven()
    solver = SOLVERS[name]
    whole = extremes_by(solver, Stack(stack), stack, generator=generator(), tolerance=1e-3)
    starts = random_vectors(12, 80, stack, generator())
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    asking = [(solver(Stack(stack[part]), starts[part], tolerance=1e-3), part) for part in parts]
    equal(whole, joined(in_step(asking, stack)))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_stack_that_cannot_be_restricted_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = uneven()
    whole = extremes_by(SOLVERS[name], Stack(stack), stack, generator=generator())
    monkeypatch.setattr(Stack, "restricted", lambda *_: None)
    equal(whole, extremes_by(SOLVERS[name], Stack(stack), stack, generator=generator()))


def test_some_of_a_stack() -> None:
    stack = uneven()
    index = torch.tensor([7, 2, 5])
    some = Among(Stack(stack), index)
    assert (some.nodes, some.size) == (3, 80)
    vectors = torch.randn(3, 80, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(some.product(vectors), torch.einsum("npq,nq->np", stack[index], vectors))
    torch.testing.assert_close(some.restricted(torch.tensor([2])).matrices(0, 1), stack[5:6])
    torch.testing.assert_close(some.matrices(1, 3), stack[index][1:])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_scaled_stack_by_products_of_the_plain_one(shift: float) -> None:
    stack = uneven()
    scale = torch.rand(12, 80, generator=generator(), dtype=torch.float64) + 0.5
    formed = (stack + shift * torch.eye(80, dtype=torch.float64)) * scale[:, :, None] * scale[:, None, :]
    starts = random_vectors(12, 80, stack, generator())
    truth = answered(lanczos(Stack(formed), starts), Stack(formed))
    equal(truth, answered(scaled(lanczos(Stack(formed), starts), scale, shift), Stack(stack)), 1e-7)


def test_an_early_block_is_left_as_it_was_when_it_settled() -> None:
    stack = uneven()
    found = extremes_by(lanczos, Stack(stack), stack, generator=generator(), tolerance=1e-3)
    starts = random_vectors(12, 80, stack, generator())
    alone = answered(lanczos(Stack(stack[1:2]), starts[1:2], tolerance=1e-3), Stack(stack[1:2]))
    assert alone.products < found.products
    torch.testing.assert_close(found.values[1], alone.values[0])
