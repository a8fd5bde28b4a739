"""Planting, scanning and counting: which wounds were found, and which findings stand where no wound is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from benchmarks.lesions.digits import digits
from benchmarks.lesions.networks import Architecture, Site, trained
from benchmarks.lesions.odd import confirmed, detach, make_sparse, rates_above
from benchmarks.lesions.planting import EXPLODED, LESIONS, NOT_FINITE, Lesion, Node
from benchmarks.lesions.scanning import Roots, Said, said_of

DEADLY = frozenset("ND102 ND201 ND202 ND203 ND252 ND301 ND304 ND401".split())
"""What a unit that fires on 0.5 % of the samples must not be called."""
RATES_ABOVE = (1, 2, 4, 8)
ALSO = "also "
"""Marks a code that may stand at a node and was not planted there."""


Check = Callable[[Node, str], bool]


def _never(node: Node, code: str) -> bool:
    return False


@dataclass
class Count:
    """By finding: wounds planted and found, findings that stand on their own, and those of them that are right;
    ``followed`` of these stand at units that bear no wound, and plain hooks confirm them.
    """

    planted: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    followed: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    sparse: int = 0
    sparse_called_dead: int = 0
    untouched: int = 0
    untouched_nodes: int = 0
    untouched_flagged: Counter[str] = field(default_factory=Counter)

    def add(self, other: Count) -> None:
        """Add the counts of other plants."""
        for name in ("planted", "found", "own", "right", "followed", "untouched_flagged"):
            getattr(self, name).update(getattr(other, name))
        self.missed += other.missed
        self.false += other.false
        self.sparse += other.sparse
        self.sparse_called_dead += other.sparse_called_dead
        self.untouched += other.untouched
        self.untouched_nodes += other.untouched_nodes

    def score(
        self, expected: Mapping[Node, set[str]], said: Said, before: Roots, label: str, true: Check = _never
    ) -> None:
        """Count one scan.

        Args:
            expected: codes by wounded node.
            said: what the scan said.
            before: what it said of the network without wounds, which is not counted.
            label: for the list of what went wrong.
            true: whether a finding at another node is right all the same.
        """
        for node, codes in expected.items():
            for code in (one for one in codes if not one.startswith(ALSO)):
                self.planted[code] += 1
                if code in said.every.get(node, ()):
                    self.found[code] += 1
                else:
                    self.missed.append(f"{label}: {code} at {node}, there {sorted(said.every.get(node, ()))}")
        for node, codes in said.roots.items():
            for code in codes - before.get(node, frozenset()):
                wanted = {one.removeprefix(ALSO) for one in expected.get(node, ())}
                self.own[code] += 1
                if code in wanted:
                    self.right[code] += 1
                elif true(node, code):
                    self.right[code] += 1
                    self.followed[code] += 1
                else:
                    self.false.append(f"{label}: {code} at {node}")


def counted(architecture: Architecture, seed: int, per_site: int, mixes: int) -> Count:
    """Plant every lesion that fits, singly and mixed, and count."""
    count = Count()
    data = digits().reporting
    base = said_of(trained(architecture, seed), data)
    count.untouched += len(base.nodes)
    count.untouched_nodes += sum(bool(codes) for codes in base.roots.values())
    for codes in base.roots.values():
        count.untouched_flagged.update(codes)
    draw = random.Random(seed)
    for site in architecture.sites:
        for lesion in (one for one in LESIONS if one.fits(site)):
            for strength in lesion.strengths:
                for unit in units_of(site, base, draw, per_site):
                    label = f"{architecture.name} {seed}, {lesion.name} {strength:g}"
                    count.add(_planted(architecture, seed, [(lesion, site, unit, strength)], base, label))
        for unit in units_of(site, base, draw, 2 * per_site):
            if site.listener:
                model = trained(architecture, seed)
                detach(model, site, unit)
                label = f"{architecture.name} {seed}, detached"
                count.score({(site.layer, unit): {"ND301"}}, said_of(model, data), base.roots, label)
            if site.activation in ("relu", "gelu"):
                _sparse(architecture, seed, site, unit, count)
    for turn in range(mixes):
        wounds = list(_mix(architecture, base, draw))
        count.add(_planted(architecture, seed, wounds, base, f"{architecture.name} {seed}, mix {turn}"))
    model = trained(architecture, seed)
    for facts, nodes in rates_above(model, RATES_ABOVE):
        label = f"{architecture.name} {seed}, learning rate {facts.lr:.3g}"
        said = said_of(trained(architecture, seed), data, facts)
        flipping = {node: {ALSO + "ND404"} for node in said.roots}
        count.score(flipping | {node: {"ND402"} for node in nodes}, said, base.roots, label)
    return count


def units_of(site: Site, base: Said, draw: random.Random, number: int) -> list[int]:
    """Choose units that are well, and whose neighbour before is."""
    layers = [layer for layer in (site.layer, site.norm) if layer]
    well = [
        i
        for i in range(1, site.units)
        if all((layer, j) not in base.every for layer in layers for j in (i - 1, i))
    ]
    return draw.sample(well, min(number, len(well)))


Wound = tuple[Lesion, Site, int, float]


def _planted(architecture: Architecture, seed: int, wounds: Sequence[Wound], base: Said, label: str) -> Count:
    model = trained(architecture, seed)
    expected: dict[Node, set[str]] = {}
    with torch.no_grad():
        for lesion, site, unit, strength in wounds:
            lesion.plant(model, site, unit, strength)
            node, code = lesion.expected(site, unit)
            expected.setdefault(node, set()).update({code, *(ALSO + one for one in lesion.also)})
    count = Count()
    check = partial(confirmed, model, architecture.sites)
    count.score(expected, said_of(model, digits().reporting), base.roots, label, check)
    return count


def _mix(architecture: Architecture, base: Said, draw: random.Random) -> Iterator[Wound]:
    """Yield every lesion once, each in a unit of its own that has no neighbour with another."""
    for site in architecture.sites:
        last = site is architecture.sites[-1]  # what explodes before a unit changes what its own wound does
        lesions = [
            one
            for one in LESIONS
            if one.fits(site) and one.name != NOT_FINITE and (last or one.name != EXPLODED)
        ]
        draw.shuffle(lesions)
        taken: set[int] = set()
        for lesion in lesions:
            free = [u for u in units_of(site, base, draw, site.units) if not taken & {u - 1, u, u + 1}]
            if free and len(taken) < site.units // 4:
                taken |= {free[0] - 1, free[0]}
                yield lesion, site, free[0], draw.choice(lesion.strengths)


def _sparse(architecture: Architecture, seed: int, site: Site, unit: int, count: Count) -> None:
    model: nn.Module = trained(architecture, seed)
    data = digits().reporting
    make_sparse(model, site, unit, data[0])
    said = said_of(model, data)
    count.sparse += 1
    wrong = DEADLY & said.every.get((site.layer, unit), frozenset())
    if wrong:
        count.sparse_called_dead += 1
        count.false.append(f"{architecture.name} {seed}, sparse unit {unit} of {site.layer}: {sorted(wrong)}")
