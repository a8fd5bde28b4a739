"""``E s sᵀ`` over all signs is the curvature of the loss in the output, and no matrix is formed to have it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nndiag.probe import callable_curvature, factor, softmax
from nndiag.probe.curvature import loss_factor
from nndiag.probe.factor import Factor
from nndiag.probe.loss import LOSSES, Loss, custom_loss, named_loss
from nndiag.probe.softmax import SoftmaxFactor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def true_curvature(loss: Loss, output: Tensor, targets: Tensor) -> Tensor:
    """Return ``∂²ℓ_n/∂f_n²`` by double backward, ``(batch, m, m)``."""
    found = []
    for sample in range(len(output)):

        def value(row: Tensor, sample: int = sample) -> Tensor:
            whole = output.clone().index_copy(0, torch.tensor([sample]), row.reshape(1, *output.shape[1:]))
            return loss.per_sample(whole, targets)[sample]

        hessian = torch.autograd.functional.hessian(value, output[sample].flatten())
        assert isinstance(hessian, Tensor)
        found.append(hessian)
    return torch.stack(found)


def all_positive(rows: Tensor, count: int) -> Tensor:
    return torch.ones(len(rows), count)


def mean_over_signs(found: Factor, sample: int, inner: int) -> Tensor:
    """Return ``E s sᵀ`` of one sample over all signs of its atoms and all ``inner`` signs within mixtures."""
    atoms = found.weights.shape[1]
    every = torch.tensor(list(product((-1.0, 1.0), repeat=atoms + inner)), dtype=torch.float64)
    drawn = every[:, atoms:]
    samples = torch.full((len(every),), sample)
    seeds = found.combine(every[:, :atoms], samples, lambda rows, _: drawn[rows]).flatten(1)
    return seeds.T @ seeds / len(seeds)


def by_columns(found: Factor, batch: int) -> Tensor:
    """Return ``Σ_a s_a s_aᵀ`` of factors without mixtures, ``(batch, m, m)``."""
    assert (found.ranks == 1).all()
    total = torch.zeros(())
    for atom in range(found.weights.shape[1]):
        signs = torch.zeros_like(found.weights)
        signs[:, atom] = 1
        s = found.combine(signs, torch.arange(batch), all_positive).flatten(1)
        torch.testing.assert_close(s.square().sum(dim=1), found.weights[:, atom], rtol=1e-9, atol=1e-14)
        total = total + s[:, :, None] * s[:, None, :]
    return total


def labelled(name: str) -> tuple[Tensor, Tensor]:
    """Return an output and targets, some left out, for a loss on labels."""
    labels = torch.randint(0, 3, (4, 2), generator=seeded(2))
    labels[0, 1] = labels[2, 0] = labels[2, 1] = -100
    output = 3 * random(4, 3, 2) if named_loss(name).class_axis == 1 else 3 * random(4, 2, 3)
    return (output.log_softmax(dim=1) if name == "nll" else output), labels


def given(name: str) -> tuple[Loss, Tensor, Tensor]:
    loss = named_loss(name)
    if loss.labels is None:
        output, targets = random(4, 3, 2), torch.rand(4, 3, 2, generator=seeded(1), dtype=torch.float64)
    else:
        output, targets = labelled(name)
        if name == "nll":  # its own Hessian in log-probabilities is 0: they are taken as logits
            named = named_loss("cross_entropy").over(targets)
            return named, output, named.prepare(output, targets)
    loss = loss.over(targets)
    return loss, output, loss.prepare(output, targets)


@pytest.mark.parametrize("name", LOSSES)
def test_the_columns_make_up_the_autograd_hessian(name: str) -> None:
    loss, output, targets = given(name)
    truth = true_curvature(loss, output, targets)
    found = loss_factor(named_loss(name).over(targets) if name == "nll" else loss, output, targets)
    torch.testing.assert_close(by_columns(found, 4), truth, rtol=1e-9, atol=1e-12)
    assert found.total == pytest.approx(float(truth.diagonal(dim1=1, dim2=2).sum(dim=1).mean()))
    assert found.negative == 0


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 1)])
def test_columns_in_closed_form_make_up_the_same(shape: tuple[int, ...]) -> None:
    output = 3 * random(*shape)
    found = loss_factor(named_loss("cross_entropy"), output, None, all_exact=True)
    assert found.weights.shape == (5, 7)
    p = output.flatten(1).softmax(dim=1)
    truth = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(by_columns(found, 5), truth, rtol=1e-12, atol=1e-15)
    assert found.total == pytest.approx(float(truth.diagonal(dim1=1, dim2=2).sum(dim=1).mean()))


def test_columns_in_closed_form_of_confident_outputs() -> None:
    sure = [[80, 0, 1], [0, 80, 1], [0, 1, 80], [900, 0, 1], [0, 900, 1], [0, 1, 900]]
    subnormal = [[720, 0, 1], [0, 720, 1], [735, 2, 0], [1, 0, 730]]
    output = torch.tensor(sure + subnormal).double()
    found = loss_factor(named_loss("cross_entropy"), output, None, all_exact=True)
    logs = output.log_softmax(dim=1)
    rest = torch.stack([torch.cat([row[:k], row[k + 1 :]]).logsumexp(0) for row in logs for k in range(3)])
    traces = (logs.flatten() + rest).exp().reshape(len(output), 3)  # p (1 − p)
    tiny = 1e-320  # there numbers have few digits left
    torch.testing.assert_close(found.weights.sum(dim=1), traces.sum(dim=1), rtol=1e-12, atol=tiny)
    diagonal = by_columns(found, len(output)).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, traces, rtol=1e-12, atol=tiny)
    assert torch.isfinite(by_columns(found, len(output))).all()


def test_columns_of_a_softmax_are_its_eigenvectors() -> None:
    found = loss_factor(named_loss("cross_entropy"), 3 * random(5, 8), None)
    p = (3 * random(5, 8)).softmax(dim=1)
    values = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).flip(1)
    torch.testing.assert_close(found.weights, values, rtol=1e-9, atol=1e-14)


def test_a_confident_softmax_keeps_its_digits() -> None:
    output = torch.tensor([[30.0, 0.0, 1.0]])
    found = loss_factor(named_loss("cross_entropy"), output, None)
    p = output.double().softmax(dim=1)[0]
    assert float(found.weights.sum()) == pytest.approx(float((p * (1 - p)).sum()), rel=1e-2)
    assert float(found.weights.sum()) > 0


@pytest.mark.parametrize(("apart", "mixtures"), [(0, 1), (2, 2), (2, 4), (5, 1)])
@pytest.mark.parametrize("axis", [1, -1])
def test_mixtures_of_a_softmax_are_right_in_the_mean(
    apart: int, mixtures: int, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "APART", apart)
    monkeypatch.setattr(softmax, "MIXTURES", mixtures)
    monkeypatch.setattr(softmax, "TURNED", 1)
    output = 2 * random(3, 2, 4) if axis == -1 else 2 * random(3, 4, 2)
    weights = torch.tensor([[0.5, 0.5], [2.0, 0.0], [0.25, 1.0]], dtype=torch.float64)
    found = SoftmaxFactor(output, axis, weights)
    assert (found.ranks > 1).any()
    p = output.softmax(dim=axis)
    for sample in range(3):
        truth = torch.zeros(2, 4, 2, 4, dtype=torch.float64)
        for t in range(2):
            own = p[sample, t] if axis == -1 else p[sample, :, t]
            truth[t, :, t] = weights[sample, t] * (own.diag() - own[:, None] * own[None, :])
        truth = truth if axis == -1 else truth.permute(1, 0, 3, 2)
        inner = 8
        torch.testing.assert_close(mean_over_signs(found, sample, inner), truth.reshape(8, 8))
        assert float(found.weights[sample].sum()) == pytest.approx(float(truth.reshape(8, 8).trace()))


def test_a_mixture_never_counts_as_a_single_column() -> None:
    found = SoftmaxFactor(random(2, 1, 600), -1, torch.ones(2, 1, dtype=torch.float64))
    assert found.weights.shape[1] == 512 + 88
    assert (found.ranks[:512] == 1).all()
    assert (found.ranks[512:] > 1).all()


@pytest.mark.parametrize("name", ["mse", "bce_with_logits"])
def test_mixtures_of_outputs_are_right_in_the_mean(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor, "DIAGONAL_ATOMS", 3)
    output = random(2, 7)
    loss = named_loss(name)
    found = loss_factor(loss, output, None)
    truth = true_curvature(loss, output, torch.zeros_like(output))
    assert found.ranks.tolist() == [3, 2, 2]
    for sample in range(2):
        torch.testing.assert_close(mean_over_signs(found, sample, 7), truth[sample])


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel())
        return result


def test_a_vocabulary_takes_no_more_than_its_logits() -> None:
    output = torch.randn(4, 8, 20_000, generator=seeded())
    loss = named_loss("causal_lm")
    with LargestTensor() as seen:
        found = loss_factor(loss, output, None)
        signs = torch.ones_like(found.weights)
        seed = found.combine(signs, torch.arange(4), all_positive)
    assert seed.shape == output.shape
    assert found.weights.shape[1] <= 512 + 256
    assert seen.largest <= output.numel()


def coupled(rank: int, outputs: int = 600) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a convex loss in which all outputs meet, of curvature of this rank, another for every sample."""
    mixing = random(outputs, rank, seed=3) / outputs**0.5 * torch.logspace(0, -1, rank, dtype=torch.float64)

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return F.softplus(output @ mixing.to(output) - targets).sum(dim=1)

    return loss


def test_a_callable_of_many_outputs_is_covered_by_its_leading_columns() -> None:
    loss = custom_loss("own", coupled(20))
    output, targets = random(3, 600), random(3, 20, seed=1)
    found = loss_factor(loss, output, targets)
    assert found.weights[:, found.ranks == 1].sum() >= 0.99 * found.weights.sum()
    truth = true_curvature(loss, output, targets)
    assert found.total == pytest.approx(float(truth.diagonal(dim1=1, dim2=2).sum(dim=1).mean()), rel=1e-3)
    values = torch.linalg.eigvalsh(truth).flip(1)
    torch.testing.assert_close(found.weights[:, :8], values[:, :8], rtol=1e-6, atol=1e-9)


def test_all_of_a_callable_is_taken_where_leading_columns_hold_it() -> None:
    loss = custom_loss("own", coupled(12))
    output, targets = random(2, 600), random(2, 12, seed=1)
    found = loss_factor(loss, output, targets, coverage=1 - 1e-9)
    truth = true_curvature(loss, output, targets)
    torch.testing.assert_close(by_columns(found, 2), truth, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_callable_that_takes_outputs_one_by_one_is_seen_to_be_diagonal(dtype: torch.dtype) -> None:
    loss = custom_loss("own", lambda f, y: F.huber_loss(f, y, reduction="none").sum(dim=1))
    output, targets = (2 * random(3, 400)).to(dtype), random(3, 400, seed=1).to(dtype)
    found = loss_factor(loss, output, targets)
    truth = ((output - targets).abs() < 1).double()
    torch.testing.assert_close(found.weights, truth, rtol=1e-5, atol=1e-5)
    assert (found.ranks == 1).all()


def test_what_a_callable_has_beside_its_leading_columns_is_right_in_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callable_curvature, "AUTOGRAD_LIMIT", 2)
    monkeypatch.setattr(callable_curvature, "LEADING", 2)
    monkeypatch.setattr(callable_curvature, "DRAWS", 1)
    monkeypatch.setattr(callable_curvature, "SWEEPS", 60)
    loss = custom_loss("own", coupled(5, outputs=5))
    output, targets = random(2, 5), random(2, 5, seed=1)
    found = loss_factor(loss, output, targets)
    assert found.ranks.tolist() == [1, 1, 3]
    truth = true_curvature(loss, output, targets)
    for sample in range(2):
        torch.testing.assert_close(mean_over_signs(found, sample, 5), truth[sample], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", [40, 400])
def test_negative_parts_of_a_callable_are_left_out_and_reported(outputs: int) -> None:
    directions = torch.linalg.qr(random(outputs, 3)).Q
    signed = torch.tensor([2.0, 1.0, -6.0], dtype=torch.float64)
    loss = custom_loss("own", lambda f, y: ((f @ directions).square() * signed).sum(dim=1) / 2)
    found = loss_factor(loss, random(2, outputs), torch.zeros(2), coverage=1 - 1e-9)
    assert found.total == pytest.approx(3)
    assert found.negative == pytest.approx(6)
    truth = directions @ signed.clamp_min(0).diag() @ directions.T
    torch.testing.assert_close(by_columns(found, 2)[1], truth, rtol=1e-6, atol=1e-6)


def test_a_callable_of_outputs_that_are_one_number() -> None:
    loss = custom_loss("own", lambda f, y: (f - y) ** 4)
    output = random(5, 1)[:, 0]
    found = loss_factor(loss, output, torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(found.weights[:, 0], 12 * output.square())
    assert found.combine(torch.ones(5, 1), torch.arange(5), all_positive).shape == output.shape


def test_a_callable_of_many_outputs_holds_what_it_says() -> None:
    output = random(6, 900)
    mixed = coupled(300, 900)
    targets = torch.zeros(6, 300, dtype=torch.float64)
    found = loss_factor(custom_loss("own", mixed), output, targets)
    rows = torch.arange(6)
    signs = torch.ones(6, found.weights.shape[1])
    with LargestTensor() as seen:
        found.combine(signs, rows, all_positive)
    assert 8 * seen.largest <= found.held(6) / 3  # leading eigenvectors, Krylov vectors and their images
    assert found.held(12) == 2 * found.held(6)
    assert found.entries == 900


@pytest.mark.parametrize("outputs", [4, 400])
def test_a_callable_without_curvature_has_none(outputs: int) -> None:
    loss = custom_loss("own", lambda f, y: f.sum(dim=1))
    found = loss_factor(loss, random(2, outputs), torch.zeros(2))
    assert found.total == 0
    assert found.negative == 0


def test_every_class_of_many_positions_is_taken_where_all_are_exact() -> None:
    output = random(2, 20, 40).mT
    loss = named_loss("cross_entropy")
    assert int(loss_factor(loss, output, None).ranks.max()) > 1
    found = loss_factor(loss, output, None, all_exact=True)
    assert int(found.ranks.max()) == 1
    truth = true_curvature(loss, output, torch.zeros(2, 20, dtype=torch.long))
    torch.testing.assert_close(by_columns(found, 2)[1], truth[1], rtol=1e-9, atol=1e-12)
