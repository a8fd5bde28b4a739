"""Which atoms of the loss curvature share a backward pass, and how many passes each sample gets.

A pass carries, for every sample, a sum of atoms with independent signs: ``q = (Σ_a ε_a x_a)²`` with ``x_a = s_aᵀ J v``
stands for ``Σ_a x_a²``. It is right in the mean, exact where the atom is alone, and its variance is
``2[(Σ x²)² − Σ x⁴]``. So a sample's heaviest atoms go alone, and the others are dealt to the passes left so that these
carry about the same. A sample that carries little of the trace needs fewer passes than one that carries much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = 1e-12
"""Share of the batch's trace below which an atom is nothing but rounding."""
PICKED_COST = 1.8
"""Cost of a row that is picked from its batch, over one in a pass of the whole batch: it needs a forward pass too."""
OWN_NOISE, OWN_PASSES, LIGHT = 25, 4, 1e-2
"""A sample by itself may be so many times as noisy, where so many passes reach that and unless it is this light beside
the mean: a node may see few samples, and light ones, of which the noise of the batch says nothing."""
CHEAPEST, PRICES, ROUNDS = 1e-12, 16, 3
"""Search for the price of a pass: the least, relative to the largest value, how many are tried at once, how often."""


@dataclass(frozen=True)
class Allotment:
    """Where the atoms of every sample of a batch go.

    ``passes`` of each sample, ``(batch,)``; ``whole`` of them are taken by all samples together. ``place`` is the pass
    of every atom, ``(batch, atoms)``, -1 for one that is nothing; ``exact`` the share of the trace that goes alone.
    """

    passes: Tensor
    whole: int
    place: Tensor
    exact: float


def allot(weights: Tensor, ranks: Tensor, *, noise: float, coverage: float, limit: int) -> Allotment:
    """Return the cheapest allotment that keeps the noise and the coverage asked for.

    Args:
        weights: traces of the atoms, ``(batch, atoms)``.
        ranks: columns mixed in each atom, ``(atoms,)``: an atom of several is noisy though it is alone.
        noise: accepted standard deviation of the batch's mean matrix, as a share of its trace, for a node that sees
            all atoms alike. 0 gives every atom a pass of its own.
        coverage: share of the trace that is to go alone, where the limit allows it.
        limit: most passes of a sample where atoms share; not a bound where ``noise`` is 0.
    """
    total = float(weights.sum())
    atoms = _Sorted(weights, ranks, NEGLIGIBLE * total / len(weights))
    most = int(atoms.counts.max())
    if noise <= 0 or most <= 2:
        whole = _shared(atoms.counts)
        passes = atoms.counts.clamp_min(whole)
    else:
        tables = atoms.tables(min(most, limit))
        passes, whole = _cheapest(
            tables, ((noise * total) ** 2, (1 - coverage) * total), atoms.least(tables[0], noise)
        )
    singles = atoms.singles(passes[:, None])
    shared = float(atoms.shared(singles).sum())
    exact = max(0.0, 1.0 - shared / total) if total > 0 else 1.0
    return Allotment(passes, whole, atoms.unsorted(_dealt(atoms.heavy, singles[:, 0], passes)), exact)


class _Sorted:
    """The atoms of every sample, heaviest first, with sums over the first of them and over the others."""

    def __init__(self, weights: Tensor, ranks: Tensor, negligible: float) -> None:
        live = weights > negligible
        self.counts = live.sum(dim=1).clamp_min(1)
        self.heavy, self._order = torch.where(live, weights, 0).sort(dim=1, descending=True, stable=True)
        mixed = (ranks > 1)[self._order]
        squares = self.heavy.square()
        self._rest = _sums_after(self.heavy)
        self._rest_pure = _sums_after(torch.where(mixed, 0, squares))
        self._first_mixed = _sums_before(torch.where(mixed, self.heavy, 0))
        self._first_mixed_squares = _sums_before(torch.where(mixed, squares, 0))

    def singles(self, passes: Tensor) -> Tensor:
        """Return how many atoms of each sample go alone: those at least as heavy as what the passes left carry.

        Args:
            passes: of each sample, ``(batch, cases)``, for several cases at once.
        """
        reach = min(int(passes.max()), self.heavy.shape[1])
        heavy, after = self.heavy[:, None, :reach], self._rest[:, None, 1 : reach + 1]
        left = passes[:, :, None] - 1 - torch.arange(reach, device=heavy.device)
        enough = (left > 0) & (heavy * left >= after) | (left == 0) & (after <= 0)
        return (enough & (heavy > 0)).long().cumprod(dim=2).sum(dim=2)

    def shared(self, singles: Tensor) -> Tensor:
        """Return the weight that does not go alone, or alone but mixed in itself, ``(batch, cases)``."""
        return self._rest.gather(1, singles) + self._first_mixed.gather(1, singles)

    def tables(self, most: int) -> tuple[Tensor, Tensor]:
        """Return, per sample and number of passes, the variance of its share of the trace, and what is shared.

        The variance is ``2[Σ_passes (Σ w)² − Σ_columns w²]``, the passes that share taken to carry the same.
        """
        passes = torch.arange(1, most + 1, device=self.counts.device)
        allowed = torch.minimum(self.counts[:, None], passes)
        singles = self.singles(allowed)
        together = self._rest.gather(1, singles).square() / (allowed - singles).clamp_min(1)
        together += self._first_mixed_squares.gather(1, singles) - self._rest_pure.gather(1, singles)
        return 2 * together.clamp_min(0), self.shared(singles)

    def least(self, variances: Tensor, noise: float) -> Tensor:
        """Return the fewest passes of each sample that keep its own noise low, ``(batch,)``.

        A node may see a few samples alone, and light ones: the noise of the batch says nothing of it.
        """
        own = self._rest[:, :1]
        enough = (variances[:, :OWN_PASSES] <= (OWN_NOISE * noise * own) ** 2) & (own > LIGHT * own.mean())
        return torch.where(enough.any(dim=1), enough.long().argmax(dim=1) + 1, 1)

    def unsorted(self, place: Tensor) -> Tensor:
        """Return what belongs to atoms in order of weight in the order they were given in."""
        return torch.empty_like(place).scatter_(1, self._order, place)


def _sums_after(values: Tensor) -> Tensor:
    """Return ``Σ_{j ≥ i}`` for ``i`` from 0 to the number of values."""
    return torch.nn.functional.pad(values.flip(1).cumsum(dim=1).flip(1), (0, 1))


def _sums_before(values: Tensor) -> Tensor:
    """Return ``Σ_{j < i}``, the same."""
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))


def _dealt(heavy: Tensor, singles: Tensor, passes: Tensor) -> Tensor:
    """Return the pass of every atom in order of weight: alone first, then to and fro over the passes left."""
    rank = torch.arange(heavy.shape[1], device=heavy.device).expand(heavy.shape)
    left = (passes - singles).clamp_min(1)[:, None]
    turn = (rank - singles[:, None]) % (2 * left)
    turn = torch.where(turn < left, turn, 2 * left - 1 - turn)
    place = torch.where(rank < singles[:, None], rank, singles[:, None] + turn)
    return torch.where(heavy > 0, place, -1)


def _cheapest(
    tables: tuple[Tensor, Tensor], budgets: tuple[float, float], least: Tensor
) -> tuple[Tensor, int]:
    """Return the passes of each sample, and how many are taken whole, at little cost that keeps to the budgets.

    How many to take whole is decided by what each sample would need by itself; then what the others still need.
    """
    batch, most = tables[0].shape
    alone = torch.maximum(_needed(tables, budgets, 1), least)
    levels = torch.arange(1, most + 1, device=alone.device)
    picked = (alone[:, None] - levels).clamp_min(0).sum(dim=0)
    whole = int((levels * batch + PICKED_COST * picked).argmin()) + 1
    return (alone if whole == 1 else torch.maximum(_needed(tables, budgets, whole), least)), whole


def _needed(tables: tuple[Tensor, Tensor], budgets: tuple[float, float], whole: int) -> Tensor:
    """Return the passes of each sample, at least ``whole``, that keep to the budgets."""
    further = [_fewest(table[:, whole - 1 :], budget) for table, budget in zip(tables, budgets, strict=True)]
    return torch.stack(further).amax(dim=0) + whole


def _fewest(table: Tensor, budget: float) -> Tensor:
    """Return how far along its row to go in each sample so that the sum keeps to the budget, in few steps together.

    By the price of a step: at each, every sample goes to where value and price together are least. Where the budget
    cannot be kept the price falls to nothing, and every sample goes as far as it helps.
    """
    if float(table[:, 0].sum()) <= budget:
        return torch.zeros(len(table), dtype=torch.long, device=table.device)
    steps = torch.arange(table.shape[1], dtype=table.dtype, device=table.device)
    low, high = CHEAPEST * float(table.max()), 2 * float(table.max())
    grid = torch.linspace(0, 1, PRICES + 1, dtype=table.dtype, device=table.device)
    for _ in range(ROUNDS):
        prices = low * (high / low) ** grid
        taken = (table[:, None] + prices[:, None] * steps).argmin(dim=2)
        kept = table.gather(1, taken).sum(dim=0) <= budget
        place = max(0, int(kept.long().cumprod(dim=0).sum()) - 1)
        low, high = prices[[place, min(place + 1, PRICES)]].tolist()
    return (table + low * steps).argmin(dim=1)


def _shared(counts: Tensor) -> int:
    """Return how many of the passes are cheaper taken by the whole batch than by those that need them."""
    levels = torch.arange(1, int(counts.max()) + 1, device=counts.device)
    return max(1, int(((counts[:, None] >= levels).double().mean(dim=0) * PICKED_COST > 1).sum()))
