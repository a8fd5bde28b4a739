"""Samples are put into groups that cost as little as any cut of them in order, and every one is in one group."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from nndiag.measures.grouping import FORWARD, cost_of, grouped


def cost(sizes: list[int], passes: list[int]) -> float:
    return sum(cost_of(n, k) for n, k in zip(sizes, passes, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_no_other_cut_is_cheaper(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    passes = (torch.rand(60, generator=generator) ** 3 * 6).long()
    folds = torch.arange(60) % 4
    found = list(grouped(passes, folds, 10**6))
    ordered = sorted((int(n) for n in passes if n > 0), reverse=True)
    cuts = [
        [0, *inner, len(ordered)]
        for count in range(4)
        for inner in combinations(range(1, len(ordered)), count)
        if all(ordered[i - 1] > ordered[i] for i in inner)
    ]
    best = min(cost([b - a for a, b in pairwise(cut)], [ordered[a] for a in cut[:-1]]) for cut in cuts)
    whole = cost_of(60, ordered[0]) - 60 * FORWARD
    if found == [None]:
        assert whole <= best
        return
    groups = [group for group in found if group is not None]
    assert cost([len(g) for g in groups], [int(passes[g].max()) for g in groups]) <= min(best, whole) + 1e-9
    assert torch.cat(groups).sort().values.tolist() == torch.nonzero(passes).flatten().tolist()
    for group in groups:
        assert (folds[group].diff() >= 0).all()


def test_samples_alike_are_left_as_they_are() -> None:
    assert list(grouped(torch.full((32,), 5), torch.arange(32) % 4, 8)) == [None]


def test_groups_keep_to_their_size() -> None:
    passes = torch.tensor([9] * 30 + [1] * 500)
    groups = list(grouped(passes, torch.arange(530) % 4, 90))
    assert all(group is not None and len(group) * int(passes[group].max()) <= 90 for group in groups)


def test_where_no_sample_has_a_pass_one_is_shown_all_the_same() -> None:
    (only,) = grouped(torch.zeros(5, dtype=torch.long), torch.zeros(5), 8)
    assert only is not None
    assert only.tolist() == [0]
