"""Which backward passes a batch's curvature needs: whole columns, single rows, and signs for the rest.

``B_n = Σ_c s_{n,c} s_{n,c}ᵀ`` sits in few columns of few samples. The leading column of every sample is
taken exactly. Of
the others the heaviest are taken exactly, sample by sample, until what is left is small as noise; what is left goes
through one pass with independent signs, ``s_n = Σ_c ε_{n,c} s_{n,c}``, which is right in the mean: nothing is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE_SHARE = 0.6
"""Above this share of the samples a column is taken for the whole batch: gathering would cost more."""
NEGLIGIBLE = 1e-12
"""Share of the trace below which a column is nothing but rounding."""


@dataclass(frozen=True)
class Rows:
    """Seeds of backward passes through one batch.

    ``whole`` are seeds for all samples, each shaped like the output. ``picked`` are seeds of single rows,
    ``(rows, ...)``,
    for the samples ``samples``. ``exact`` is the share of the trace that is taken exactly, the rest by signs.
    """

    whole: tuple[Tensor, ...]
    picked: Tensor
    samples: Tensor
    exact: float


def choose_rows(columns: Tensor, noise: float, generator: torch.Generator) -> Rows:
    """Return the passes for a batch.

    Args:
        columns: ``(columns, batch, ...)``, for each sample the heaviest first.
        noise: accepted standard deviation of the sampled rest, as a share of the trace; 0 takes everything exactly.
        generator: source of the signs.
    """
    weights = columns.double().flatten(2).square().sum(dim=2)  # (columns, batch)
    total = float(weights.sum())
    nothing = columns.new_zeros(0, *columns.shape[2:]), torch.zeros(0, dtype=torch.long)
    if total <= 0:
        return Rows((torch.zeros_like(columns[0]),), *nothing, 1.0)
    used = columns[weights.sum(dim=1) > NEGLIGIBLE * total]
    weights = weights[weights.sum(dim=1) > NEGLIGIBLE * total]
    if noise <= 0 or len(used) <= 2:
        return Rows(tuple(used), *nothing, 1.0)
    chosen = _heaviest(weights, noise * total)
    whole = chosen.double().mean(dim=1) > WHOLE_SHARE
    chosen[whole] = True
    rest = torch.where(chosen, torch.zeros_like(weights), weights)
    seeds = [used[place] for place in torch.nonzero(whole).flatten().tolist()]
    if float(rest.sum()) > NEGLIGIBLE * total:
        signs = (torch.randint(0, 2, weights.shape, generator=generator) * 2 - 1).to(used)
        signs = torch.where(chosen, torch.zeros_like(signs), signs)
        seeds.append((used * signs.reshape(*signs.shape, *[1] * (used.dim() - 2))).sum(dim=0))
    single = chosen & ~whole[:, None]
    places, samples = torch.nonzero(single, as_tuple=True)
    return Rows(tuple(seeds), used[places, samples], samples, 1.0 - float(rest.sum()) / total)


def _heaviest(weights: Tensor, allowed: float) -> Tensor:
    """Return a mask of columns to take exactly: the first of every sample, then the heaviest of all others.

    As many as it takes until ``√Σ_n rest_n² ≤ allowed``, ``rest_n`` being what is left of sample ``n``.
    """
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    chosen[0] = True
    others = weights[1:]
    order = others.flatten().argsort(descending=True)
    rest = others.sum(dim=0)
    places, owners = order // others.shape[1], order % others.shape[1]
    # what is left after taking the first k of the order, for growing k until it is little enough
    taken, step = 0, max(1, others.shape[1] // 16)
    while float(rest.square().sum()) ** 0.5 > allowed and taken < len(order):
        part = slice(taken, taken + step)
        chosen[1 + places[part], owners[part]] = True
        rest = rest.index_add(0, owners[part], -others[places[part], owners[part]]).clamp_min(0)
        taken += step
    return chosen
