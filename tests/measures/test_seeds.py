"""The seeds of a batch amount to the curvature of the loss: exactly, or in the mean and within the error reported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.measures.allotment import allot
from nndiag.measures.seeds import Seeds
from nndiag.measures.signs import SampleSigns
from nndiag.probe.curvature import loss_factor
from nndiag.probe.factor import ColumnFactor, DiagonalFactor, Factor
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Pass(NamedTuple):
    values: Tensor
    samples: Tensor


def every(seeds: Seeds, samples: int, rows: int = 256) -> list[Pass]:
    """Return all backward passes with the samples in them."""
    found = []
    for group in seeds.groups(rows, torch.arange(samples) % 4):
        own = torch.arange(samples) if group.samples is None else group.samples
        found += [Pass(values, own) for values in group.seeds]
    return found


def curvature_of(seeds: Iterable[Pass], batch: int) -> Tensor:
    """Return the matrix of every sample that the passes amount to, ``(batch, outputs, outputs)``."""
    found = torch.zeros(())
    for seed in seeds:
        values = seed.values.double().flatten(1)
        if found.dim() == 0:
            found = values.new_zeros(batch, values.shape[1], values.shape[1])
        found.index_add_(0, seed.samples, values[:, :, None] * values[:, None, :])
    return found


def some_columns(confident: float, samples: int = 40) -> Tensor:
    """Return columns with a falling spectrum, heavier in some samples than in others."""
    directions = torch.linalg.qr(torch.randn(samples, 6, 6, generator=seeded(), dtype=torch.float64)).Q
    falling = torch.logspace(0, -2, 6, dtype=torch.float64)
    heavy = torch.rand(samples, generator=seeded(1), dtype=torch.float64) ** confident
    return (directions * falling * heavy[:, None, None]).movedim(2, 0)


def factor_of(columns: Tensor) -> Factor:
    return ColumnFactor(columns, torch.zeros(columns.shape[1:], dtype=torch.float64))


@pytest.mark.parametrize("confident", [0.0, 4.0, 60.0])
def test_without_noise_every_column_is_exact(confident: float) -> None:
    columns = some_columns(confident)
    seeds = Seeds(factor_of(columns), 0.0, seeded())
    truth = torch.einsum("cni,cnj->nij", columns, columns)
    for rows in (1, 7, 256):
        found = every(seeds, 40, rows)
        torch.testing.assert_close(curvature_of(found, 40), truth, rtol=1e-9, atol=1e-9 * float(truth.max()))
    assert seeds.exact == pytest.approx(1)


@pytest.mark.parametrize("coverage", [0.0, 0.99])
@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3])
def test_what_is_sampled_is_right_in_the_mean_and_as_small_as_promised(noise: float, coverage: float) -> None:
    columns = some_columns(4.0)
    truth = torch.einsum("cni,cnj->nij", columns, columns).mean(dim=0)
    stack = []
    for seed in range(100):
        seeds = Seeds(factor_of(columns), noise, seeded(seed), coverage=coverage)
        stack.append(curvature_of(every(seeds, 40), 40).mean(dim=0))
        assert coverage <= seeds.exact <= 1
    draws = torch.stack(stack)
    trace = float(truth.diagonal().sum())
    deviation = float((draws - truth).square().sum(dim=(1, 2)).mean()) ** 0.5
    assert deviation <= noise * trace
    assert float((draws.mean(dim=0) - truth).norm()) <= max(4 * deviation / 100**0.5, 1e-12 * trace)


def test_confident_samples_cost_few_passes() -> None:
    seeds = Seeds(factor_of(some_columns(60.0)), 1e-2, seeded(), coverage=0.0)
    assert seeds.expected < 1
    assert sum(len(one.samples) for one in every(seeds, 40)) < 2 * 40


def test_no_curvature_at_all_is_one_pass_of_zeros() -> None:
    seeds = Seeds(factor_of(torch.zeros(3, 5, 2, dtype=torch.float64)), 1e-3, seeded())
    assert seeds.exact == 1
    (only,) = every(seeds, 3)
    assert only.values.shape == (5, 2)
    assert not only.values.any()


def test_the_same_seed_gives_the_same_passes() -> None:
    for one, two in zip(
        *(every(Seeds(factor_of(some_columns(4.0)), 1e-2, seeded(3)), 40) for _ in range(2)), strict=True
    ):
        torch.testing.assert_close(one.values, two.values, rtol=0, atol=0)


def test_signs_are_fair_and_independent_along_samples_and_places() -> None:
    source = SampleSigns(seeded())
    few = torch.arange(9)
    of_many = source.draw(torch.arange(4001), 0, 9)
    others = (
        source.draw(few, 0, 4001).T,
        source.draw(few, 1, 4001).T,
        SampleSigns(seeded(1)).draw(few, 0, 4001).T,
    )
    together = torch.cat([of_many, *others], dim=1)
    assert together.abs().eq(1).all()
    correlation = together.T @ together / 4001
    assert float((correlation - torch.eye(36)).abs().max()) < 5 / 4001**0.5
    assert float(together.mean(dim=0).abs().max()) < 5 / 4001**0.5


def test_signs_belong_to_a_sample_and_not_to_when_it_is_asked_for() -> None:
    source = SampleSigns(seeded())
    every = source.draw(torch.arange(20), 3, 130)
    assert torch.equal(source.draw(torch.tensor([7, 2, 7]), 3, 65), every[[7, 2, 7], :65])
    purposes = torch.arange(3)
    each = source.draw(torch.full((3,), 7), purposes, 65)
    assert torch.equal(each[2], source.draw(torch.tensor([7]), 2, 65)[0])


SAMPLES, POSITIONS, CLASSES, WIDTH, FEATURES = 24, 8, 12, 4, 5


def model_with_positions(confidence: float) -> tuple[Tensor, Tensor]:
    """Return the logits of a network whose positions mix, and their Jacobian in the rows of its first layer.

    ``(samples, positions, classes)`` and ``(samples, positions · classes, nodes, size)``.
    """
    torch.manual_seed(0)
    first, last = nn.Linear(FEATURES, WIDTH, bias=False).double(), nn.Linear(WIDTH, CLASSES).double()
    x = torch.randn(SAMPLES, POSITIONS, FEATURES, dtype=torch.float64)

    def run(weight: Tensor, x: Tensor) -> Tensor:
        hidden = torch.relu(x @ weight.T)
        mixed = hidden.cumsum(dim=0) / torch.arange(1, POSITIONS + 1)[:, None]
        return confidence * (hidden + mixed) @ last.weight.T

    jacobian = torch.func.vmap(torch.func.jacrev(run), (None, 0))(first.weight, x).detach()
    output = torch.func.vmap(run, (None, 0))(first.weight, x).detach()
    return output, jacobian.reshape(SAMPLES, POSITIONS * CLASSES, WIDTH, FEATURES)


def jacobian_rows(found: list[Pass], jacobian: Tensor) -> Tensor:
    """Return ``Jᵀ s`` of every row of every seed, ``(rows, nodes, size)``."""
    parts = [torch.einsum("ra,rahp->rhp", s.values.flatten(1), jacobian[s.samples]) for s in found]
    return torch.cat(parts)


def blocks(rows: Tensor) -> Tensor:
    return torch.einsum("rhp,rhq->hpq", rows, rows) / SAMPLES


@pytest.mark.parametrize("confidence", [1.0, 6.0])
def test_with_positions_and_without_noise_it_is_exact(confidence: float) -> None:
    output, jacobian = model_with_positions(confidence)
    loss = named_loss("masked_lm")
    factor = loss_factor(loss, output, None)
    p = output.softmax(dim=2)
    curvature = (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]) / POSITIONS
    by_position = jacobian.reshape(SAMPLES, POSITIONS, CLASSES, WIDTH, FEATURES)
    truth = torch.einsum("ntahp,ntab,ntbhq->hpq", by_position, curvature, by_position) / SAMPLES
    exact = blocks(jacobian_rows(every(Seeds(factor, 0.0, seeded()), SAMPLES), jacobian))
    torch.testing.assert_close(exact, truth)


@pytest.mark.parametrize("confidence", [1.0, 6.0])
def test_the_standard_error_over_the_folds_holds_the_noise_of_the_signs(confidence: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)).double()
    with torch.no_grad():
        model[2].weight.mul_(confidence)
    x = torch.randn(SAMPLES, POSITIONS, FEATURES, generator=seeded(), dtype=torch.float64)
    samples = Probe((x,), None, named_loss("masked_lm"))
    exact = measure(model, samples, Plan(Level.CURVATURE, noise=0.0))
    off, reported = [], []
    for seed in range(12):
        found = measure(model, samples, Plan(Level.CURVATURE, noise=1e-6, coverage=0.0, passes=4, seed=seed))
        assert found.curvature is not None
        assert found.curvature.coverage < 0.9
        off.append(found.layers[0].per_node["lambda_max"] - exact.layers[0].per_node["lambda_max"])
        reported.append(found.layers[0].per_node["lambda_max_se"])
    error = np.sqrt(np.square(off).mean(axis=0))
    se = np.sqrt(np.square(reported).mean(axis=0))
    assert (error < 1.5 * se).all()
    assert np.median(error / se) > 0.1


def test_more_passes_make_it_exact() -> None:
    output, _ = model_with_positions(6.0)
    factor = loss_factor(named_loss("masked_lm"), output, None)
    shares = [Seeds(factor, 1e-9, seeded(), coverage=1.0, limit=limit).exact for limit in (1, 4, 16, 96)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)


def test_many_outputs_alike_take_no_more_passes_than_allowed() -> None:
    output = torch.zeros(16, 784)
    seeds = Seeds(DiagonalFactor(torch.full((16, 784), 2 / 784), output), 2e-3, seeded(), limit=32)
    found = every(seeds, 16)
    assert len(found) == seeds.expected == 32
    total = sum(float(seed.values.square().sum()) for seed in found)
    assert total == pytest.approx(16 * 2, rel=1e-5)
    used = torch.stack([seed.values != 0 for seed in found]).sum(dim=0)
    assert used.eq(1).all()  # every output of every sample in one pass


def test_heavy_samples_get_more_passes_than_light_ones() -> None:
    weights = torch.ones(50, 8, dtype=torch.float64)
    weights[7] *= 100
    found = allot(weights, torch.ones(8, dtype=torch.long), noise=1e-1, own_noise=1.0, coverage=0.0, limit=32)
    assert int(found.passes.argmax()) == 7
    assert int(found.passes[7]) == 8
    assert int(found.passes.sum()) < 3 * 50


@pytest.mark.parametrize("seed", range(5))
def test_every_atom_has_one_place_and_those_alone_are_the_heaviest(seed: int) -> None:
    weights = torch.rand(30, 17, generator=seeded(seed), dtype=torch.float64) ** 6
    weights[3] = 0
    weights[4, 5:] = 0
    found = allot(weights, torch.ones(17, dtype=torch.long), noise=3e-2, own_noise=1.0, coverage=0.5, limit=9)
    assert ((found.place >= 0) == (weights > 1e-12 * weights.sum() / 30)).all()
    assert (found.place < found.passes[:, None]).all()
    assert (found.passes >= 1).all()
    assert int(found.passes.max()) <= 9
    alone = 0.0
    last = torch.where(found.chance, found.passes - 1, -2)
    for row, place, by_chance in zip(weights, found.place, last, strict=True):
        counts = torch.bincount(place[place >= 0], minlength=9)
        single = (place >= 0) & (place != by_chance) & (counts[place.clamp_min(0)] == 1)
        alone += float(row[single].sum())
        if single.any() and (~single & (place >= 0)).any():
            assert row[single].min() >= row[~single & (place >= 0)].max()
    assert found.exact == pytest.approx(alone / float(weights.sum()))
    assert found.exact >= 0.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [1, 5])
def test_what_is_left_to_chance_is_right_in_the_mean(seed: int, kinds: int) -> None:
    weights = torch.rand(300, 6, generator=seeded(seed), dtype=torch.float64) ** 8
    columns = (torch.eye(6, dtype=torch.float64) * weights.sqrt()[:, None]).movedim(2, 0)
    alike = torch.arange(300) % kinds
    seeds = [
        Seeds(factor_of(columns), 0.2, seeded(one), own_noise=2.0, coverage=0.0, alike=alike)
        for one in range(200)
    ]
    assert seeds[0].expected < 1
    traces = torch.tensor([sum(float(p.values.square().sum()) for p in every(one, 300)) for one in seeds])
    assert float(traces.std()) <= 0.2 * float(weights.sum())
    assert float(traces.mean()) == pytest.approx(float(weights.sum()), rel=4 * 0.2 / 200**0.5)
    rows = [sum(len(p.samples) for p in every(one, 300)) for one in seeds]
    assert np.mean(rows) == pytest.approx(300 * seeds[0].expected, rel=0.2)


def test_a_batch_of_which_chance_takes_nothing_still_shows_its_layers() -> None:
    columns = torch.full((2, 3, 2), 1e-9, dtype=torch.float64)
    columns[:, 2] = 1
    seeds = Seeds(factor_of(columns), 2e-3, seeded(), coverage=0.5)
    for first in range(3):
        groups = list(seeds.groups(256, torch.zeros(1), slice(first, first + 1)))
        assert len(groups) == 1
        assert len(list(groups[0].seeds)) >= 1


def test_of_samples_that_are_alike_chance_takes_one_in_four() -> None:
    columns = torch.full((1, 300, 1), 0.01, dtype=torch.float64)
    columns[:, 200:] = 1
    alike = torch.arange(300) % 5
    together = torch.zeros(300)
    for seed in range(60):
        factor = factor_of(torch.cat([columns, columns / 2]))
        seeds = Seeds(factor, 0.2, seeded(seed), own_noise=2.0, coverage=0.0, alike=alike)
        taken = torch.zeros(300)
        for one in every(seeds, 300):
            taken[one.samples] += one.values.flatten(1).any(dim=1)
        light = taken[:200]
        assert light.max() == 1
        for kind in range(5):
            assert abs(float(light[alike[:200] == kind].sum()) - 10) <= 1
        together += taken
    assert (together[:200] > 0).all()  # each has its turn


def test_seeds_that_are_made_together_are_those_that_are_made_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, _ = model_with_positions(6.0)
    for factor in (factor_of(some_columns(4.0)), loss_factor(named_loss("masked_lm"), output, None)):
        samples = len(factor.weights)
        both = []
        for together in (2**16, 1):
            monkeypatch.setattr("nndiag.measures.seeds.TOGETHER", together)
            both.append(every(Seeds(factor, 1e-2, seeded(3)), samples))
        assert len(both[0]) == len(both[1])
        for one, two in zip(*both, strict=True):
            torch.testing.assert_close(one.values, two.values, rtol=0, atol=0)
