"""Which atoms of the loss curvature share a backward pass, and how many passes each sample gets.

A pass carries, for every sample, a sum of atoms with independent signs: ``q = (Σ_a ε_a x_a)²`` with ``x_a = s_aᵀ J v``
stands for ``Σ_a x_a²``. It is right in the mean, exact where the atom is alone, and its variance is
``2[(Σ x²)² − Σ x⁴]``. So a sample's heaviest atoms go alone, and the others are dealt to the passes left so that these
carry about the same; or one pass carries them all, but is made by chance alone, one time in ``1/CHANCE``, and then
counts so much more. A sample that carries little of the trace needs fewer passes than one that carries much, and
one that carries next to nothing may get none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = 1e-12
"""Share of the batch's trace below which an atom is nothing but rounding."""
CHANCE = 0.25
"""How often a pass is made that is left to chance."""
OWN_PASSES, LIGHT = 4, 5e-4
"""The noise accepted of a sample by itself is kept to where so many passes reach that, and unless the sample is this
light beside the mean."""
CHEAPEST, HALVINGS = 1e-12, 20
"""Search for the price of a pass: the least, relative to the largest value, and how often the search halves."""


@dataclass(frozen=True)
class Allotment:
    """Where the atoms of every sample of a batch go.

    ``passes`` of each sample, ``(batch,)``; the last of them is left to chance where ``chance`` says so. ``place`` is
    the pass of every atom, ``(batch, atoms)``, -1 for one that is nothing; ``exact`` the share of the trace that goes
    alone; ``variance`` that of a sample's share of the trace, in the mean over the samples.
    """

    passes: Tensor
    chance: Tensor
    place: Tensor
    exact: float
    variance: float

    @property
    def expected(self) -> Tensor:
        """How many passes each sample will make in the mean, ``(batch,)``."""
        return self.passes - (1 - CHANCE) * self.chance


def allot(
    weights: Tensor, ranks: Tensor, *, noise: float, own_noise: float, coverage: float, limit: int
) -> Allotment:
    """Return the cheapest allotment that keeps the noise and the coverage asked for.

    Args:
        weights: traces of the atoms, ``(batch, atoms)``.
        ranks: columns mixed in each atom, ``(atoms,)``: an atom of several is noisy though it is alone.
        noise: accepted standard deviation of the batch's mean matrix, as a share of its trace, for a node that sees
            all atoms alike. 0 gives every atom a pass of its own.
        own_noise: the same of a sample by itself, as a share of its own trace: a node may see few samples, and light
            ones, of which the noise of the batch says nothing.
        coverage: share of the trace that is to go alone, where the limit allows it.
        limit: most passes of a sample where atoms share; not a bound where ``noise`` is 0.
    """
    total = float(weights.sum())
    live = weights > NEGLIGIBLE * total / len(weights)
    most = int(live.sum(dim=1).max())
    if noise <= 0 or most <= 1:
        return _each_alone(torch.where(live, weights, 0), ranks, total)
    atoms = _Sorted(torch.where(live, weights, 0), ranks)
    levels = _Levels(atoms, min(most, limit))
    passes, chance, singles, variances = levels.chosen(noise * total, (1 - coverage) * total, own_noise)
    shared = float(atoms.shared(singles[:, None]).sum())
    place = atoms.unsorted(_dealt(atoms.heavy, singles, passes))
    return Allotment(passes, chance, place, _exact(shared, total), float(variances.mean()))


def _each_alone(weights: Tensor, ranks: Tensor, total: float) -> Allotment:
    """Give every atom a pass of its own: what is mixed in itself alone is noisy."""
    live, mixed = weights > 0, torch.where(ranks > 1, weights, 0)
    place = torch.where(live, live.cumsum(dim=1) - 1, -1)
    variance = float(2 * mixed.square().sum(dim=1).mean())
    passes = live.sum(dim=1).clamp_min(1)
    chance = torch.zeros_like(passes, dtype=torch.bool)
    return Allotment(passes, chance, place, _exact(float(mixed.sum()), total), variance)


def _exact(shared: float, total: float) -> float:
    """Return the share of the trace that goes alone."""
    return max(0.0, 1.0 - shared / total) if total > 0 else 1.0


class _Sorted:
    """The atoms of every sample, heaviest first, with sums over the first of them and over the others."""

    def __init__(self, weights: Tensor, ranks: Tensor) -> None:
        self.counts = (weights > 0).sum(dim=1).clamp_min(1)
        self.heavy, self._order = weights.sort(dim=1, descending=True, stable=True)
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

    def variances(self, singles: Tensor, shares: Tensor) -> Tensor:
        """Return the variance of a sample's share of the trace, ``(batch, cases)``.

        ``2[Σ_passes (Σ w)² − Σ_columns w²]``, those of the passes that share taken to carry the same.

        Args:
            singles: atoms that go alone, ``(batch, cases)``.
            shares: passes among which the others are dealt, ``(batch, cases)``.
        """
        together = self._rest.gather(1, singles).square() / shares.clamp_min(1)
        together += self._first_mixed_squares.gather(1, singles) - self._rest_pure.gather(1, singles)
        return 2 * together.clamp_min(0)

    def by_chance(self, singles: Tensor) -> Tensor:
        """Return the same where the others go together in a pass left to chance.

        ``E(Σ ε x)⁴ / chance − (Σ w)²`` with ``E(Σ ε x)⁴ = 3 (Σ w)² − 2 Σ w²``.
        """
        rest = self._rest.gather(1, singles).square()
        fourth = 3 * rest - 2 * self._rest_pure.gather(1, singles)
        return fourth / CHANCE - rest + 2 * self._first_mixed_squares.gather(1, singles)

    @property
    def own(self) -> Tensor:
        """The trace of each sample, ``(batch, 1)``."""
        return self._rest[:, :1]

    def unsorted(self, place: Tensor) -> Tensor:
        """Return what belongs to atoms in order of weight in the order they were given in."""
        return torch.empty_like(place).scatter_(1, self._order, place)


class _Levels:
    """What a sample may spend, from the least: a chance, a pass, a pass and a chance, two passes, …"""

    def __init__(self, atoms: _Sorted, most: int) -> None:
        batch, device = len(atoms.counts), atoms.counts.device
        whole = torch.arange(1, most + 1, device=device).expand(batch, -1)
        passes = torch.minimum(atoms.counts[:, None], whole)
        singles = atoms.singles(passes)
        before = torch.minimum(atoms.counts[:, None], whole - 1)
        self._atoms = atoms
        self._singles = _interleaved(before, singles)
        self._passes = _interleaved(whole, passes)
        self._variances = _interleaved(atoms.by_chance(before), atoms.variances(singles, passes - singles))
        self._shared = atoms.shared(self._singles)
        self._sensible = _interleaved(singles >= before, torch.ones_like(singles, dtype=torch.bool))
        levels = torch.arange(2 * most, device=device)
        self._chance = levels % 2 == 0
        self._costs = levels // 2 + torch.where(self._chance, CHANCE, 1.0).double()

    def chosen(self, noise: float, shared: float, own_noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return passes, whether the last is left to chance, how many atoms go alone, and the variance, ``(batch,)``.

        Args:
            noise: accepted standard deviation of the sum over the samples.
            shared: accepted weight that does not go alone.
            own_noise: accepted standard deviation of a sample, as a share of its trace.
        """
        allowed = self._quiet(own_noise)
        level = _cheapest(self._shared, self._costs, allowed, shared)
        allowed &= self._shared <= self._shared.gather(1, level[:, None])
        level = _cheapest(self._variances, self._costs, allowed, noise**2)
        tables = self._passes, self._singles, self._variances
        passes, singles, variances = (table.gather(1, level[:, None])[:, 0] for table in tables)
        return passes, self._chance[level] & (singles < self._atoms.counts), singles, variances

    def _quiet(self, own_noise: float) -> Tensor:
        """Return the levels at which a sample is not too noisy by itself, ``(batch, levels)``.

        Where few passes do not reach what is accepted, it is at least no noisier than one pass of all its atoms. A
        chance only where the others are light beside those that go alone.
        """
        own = self._atoms.own
        quiet = self._sensible & (self._variances <= (own_noise * own).square())
        reached = quiet[:, : 2 * OWN_PASSES].any(dim=1, keepdim=True)
        passed = self._sensible & (self._variances <= 2 * own.square())
        return torch.where(own > LIGHT * own.mean(), torch.where(reached, quiet, passed), self._sensible)


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Return the columns of two tables in turn."""
    return torch.stack([even, odd], dim=2).flatten(1)


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


def _cheapest(table: Tensor, costs: Tensor, allowed: Tensor, budget: float) -> Tensor:
    """Return the level of each sample, of those allowed, so that the sum over the samples keeps to the budget.

    By the price of a pass: every sample goes to where value and price together are least. Where the budget
    cannot be kept the price falls to nothing, and every sample goes as far as it helps.
    """
    table = torch.where(allowed, table, torch.inf)
    low = CHEAPEST * float(table[allowed].max())
    high = float(table[allowed].max()) / float(costs[0])

    def at(price: float) -> Tensor:
        return (table + price * costs).argmin(dim=1)

    def kept(level: Tensor) -> bool:
        return float(table.gather(1, level[:, None]).sum()) <= budget

    best = at(high)
    if high <= 0 or kept(best):
        return best
    best = at(low)
    for _ in range(HALVINGS):
        price = (low * high) ** 0.5
        level = at(price)
        if kept(level):
            low, best = price, level
        else:
            high = price
    return best
