"""What is kept in which replay of the probe, so that a budget of memory is held: decided from sizes alone.

Layers whose rows fit together are kept in one replay. Where they do not, they are taken in rounds of one replay each.
A layer that does not fit by itself is *streamed*: its solver's products are made anew in every replay and nothing is
kept, and one replay serves the solvers of all layers streamed in a round. Sizes and no clock decide, so that the same
budget gives the same schedule.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nndiag.config.sizes import bytes_in_words
from nndiag.errors import UsageError
from nndiag.replay.jacobians import CHUNK_BYTES
from nndiag.spectrum import NODES_AT_ONCE, ROWS_AT_ONCE, shared_directions, worth_leading

Form = Literal["outer", "implicit", "rows", "whole", "streamed"]

SOLVER_VECTORS = {"lanczos": 32, "power": 8, "dense": 4}
"""Vectors of a block that a solver is taken to hold at once."""
PRECISELY = 4
"""So many times as many hold those of Lanczos in double precision, where it goes on for longer."""
LAYER_VECTORS = 6
"""Vectors of all blocks of a layer beside those: starts, results, images."""
PROJECTIONS = 4
"""Projections of blocks on the directions that they share that are held at once, beside those of which half is kept."""
SUMS = {"outer": 2, "rows": 1}
"""What a form takes while it is multiplied, beside what is kept, in units of that."""
STREAM_REPLAYS = 16
"""Replays that a streamed round is taken to need."""
JACOBIAN_COPIES = 3
"""Copies of a chunk of Jacobians of single samples: as they are taken, stacked, and as rows of nodes."""
TILE_BYTES = 64 * 2**20
"""What a tile of blocks or Jacobians takes where it is not asked to take less."""


@dataclass(frozen=True)
class Need:
    """What the curvature of one layer takes.

    ``form`` is how its blocks are cheapest had, ``per_sample`` the bytes that this keeps of every sample of the probe
    (none where they are added up whole). ``summing`` are the operations a sample that adding up whole takes,
    ``multiplying`` those of a product. ``dense`` says that the blocks themselves are wanted, and not products.
    """

    layer: str
    nodes: int
    size: int
    itemsize: int
    form: Form
    per_sample: float
    summing: float
    multiplying: float
    dense: bool = False
    groups: int = 1

    @property
    def vector(self) -> int:
        """Bytes of one vector of every block."""
        return self.nodes * self.size * self.itemsize


@dataclass(frozen=True)
class Passing:
    """Bytes that come and go with the passes over a batch: fixed ones, and so many a sample that is in the pass.

    ``tile`` are those of Jacobians, of which no more are formed at once than a tile holds, ``alone`` those of Jacobians
    that are taken of one sample after the other, of which a chunk is formed. ``aside`` are those that a sample of the
    whole batch takes where it is passed through in parts.
    """

    fixed: int
    per_sample: float
    tile: float
    alone: float
    aside: float

    def taken(self, batch: int, whole: int) -> int:
        """Return what passes over ``batch`` samples at a time take, of a batch of ``whole`` that belong together."""
        tiles = 2 * min(TILE_BYTES, batch * self.tile)
        aside = whole * self.aside if batch < whole else 0
        alone = JACOBIAN_COPIES * min(CHUNK_BYTES, batch * self.alone)
        return int(self.fixed + batch * self.per_sample + tiles + alone + aside)


@dataclass(frozen=True)
class Setting:
    """What is the same for all layers: the probe, the solver, and the passes.

    ``solvers`` is how many solve a block (a second one sees it as the optimiser does), ``replaying`` the operations of
    a replay a sample.
    """

    samples: int
    folds: int
    batch_size: int
    solver: str
    passing: Passing
    replaying: float
    solvers: int = 1


@dataclass(frozen=True)
class Part:
    """Nodes of a layer that are treated in one round, in a form; ``bytes`` are kept for as long as it lasts."""

    layer: str
    form: Form
    start: int
    stop: int
    bytes: int


@dataclass(frozen=True)
class Round:
    """Parts that are treated together: in one replay, or streamed in as many as their solvers need.

    ``bytes`` is the most in use at once, passes and solvers included.
    """

    parts: tuple[Part, ...]
    streamed: bool
    bytes: int


@dataclass(frozen=True)
class Schedule:
    """The rounds, and how many samples a pass takes.

    ``workspace`` bounds what a solver takes at once, ``None`` where there is no need. ``wanted`` is what doing
    everything in one replay would take, ``least`` what no budget may be below.
    """

    budget: int
    batch_size: int
    rounds: tuple[Round, ...]
    workspace: int | None
    wanted: int
    least: int

    @property
    def bytes(self) -> int:
        """The most in use at once."""
        return max(one.bytes for one in self.rounds)


def make_schedule(needs: Sequence[Need], setting: Setting, budget: int, asked: bool = True) -> Schedule:
    """Return the schedule with the fewest replays that is found to hold a budget.

    Args:
        needs: of the layers whose curvature is wanted; none for the other levels.
        setting: the probe, the solver, and the passes.
        budget: bytes for everything that a measurement allocates, beside model and probe.
        asked: whether the budget was asked for, or is what happens to be free.

    Raises:
        UsageError: not even one sample and one node at a time keep to the budget.
    """
    whole = setting.passing.taken(setting.batch_size, setting.batch_size)
    first = _at_once(needs, setting, whole)
    floor = max((_floor(need, setting) for need in needs), default=0)
    one = setting.passing.taken(1, setting.batch_size)
    least = min(one + floor, first.bytes)
    if first.bytes <= budget:
        return Schedule(budget, setting.batch_size, (first,), None, first.bytes, least)
    if one + floor > budget:
        raise _too_small(budget, least, asked)
    batch = _batch(setting, max(one, min(budget // 2, budget - floor)))
    passing = setting.passing.taken(batch, setting.batch_size)
    rounds = rounds_of(needs, setting, budget, passing)
    return Schedule(budget, batch, rounds, _workspace(budget), first.bytes, least)


def led(need: Need, setting: Setting) -> bool:
    """Whether a solver is to start from what the inputs of a layer have in common: some of its nodes do not tell it."""
    single = need.form == "outer" and not need.dense and setting.solver == "lanczos"
    return single and worth_leading(need.nodes, need.size, setting.samples)


def _leading(need: Need, setting: Setting) -> int:
    """Return what looking at what the inputs have in common takes."""
    if not led(need, setting):
        return 0
    projection = shared_directions(need.size, setting.samples) ** 2 * need.itemsize
    rows = min(setting.samples, ROWS_AT_ONCE) * projection  # half of the products of coordinates, twice
    return need.nodes * projection // 2 + PROJECTIONS * min(need.nodes, NODES_AT_ONCE) * projection + rows


def rounds_of(needs: Sequence[Need], setting: Setting, budget: int, passing: int) -> tuple[Round, ...]:
    """Divide layers into rounds: kept ones, and the largest of them streamed where that saves replays."""
    if not needs:
        return (Round((), False, passing),)
    division = _Division(needs, setting, budget, passing)
    kept, streamed = division.kept_and_streamed()
    best = division.rounds(kept, streamed)
    movable = [part.layer for part in kept if not division.needs[part.layer].dense]
    for count in range(1, len(movable) + 1):
        if len(best) <= STREAM_REPLAYS:
            break
        moved = set(movable[:count])
        stay = [part for part in kept if part.layer not in moved]
        best = min(best, division.rounds(stay, [*streamed, *moved]), key=_replays)
    return best


def _replays(rounds: Sequence[Round]) -> int:
    return sum(STREAM_REPLAYS if one.streamed else 1 for one in rounds)


class _Division:
    """One way after another to divide the layers into rounds."""

    def __init__(self, needs: Sequence[Need], setting: Setting, budget: int, passing: int) -> None:
        self.needs = {need.layer: need for need in needs}
        self._setting, self._budget, self._passing = setting, budget, passing
        self._order = {need.layer: place for place, need in enumerate(needs)}

    def kept_and_streamed(self) -> tuple[list[Part], list[str]]:
        """Return the parts that can be kept, largest first, and the layers that cannot."""
        kept: list[Part] = []
        streamed = []
        for need in self.needs.values():
            parts = self._kept(need)
            kept += parts
            if not parts:
                streamed.append(need.layer)
        return sorted(kept, key=lambda part: (-part.bytes, self._order[part.layer], part.start)), streamed

    def _kept(self, need: Need) -> list[Part]:
        """Return the parts of a layer that can be kept, the smallest way; nothing where it is to be streamed."""
        setting = self._setting
        ways = [_native(need, setting)]
        summed = need.form == "whole" or need.dense
        summed = summed or need.summing <= STREAM_REPLAYS * setting.replaying
        if summed and need.form != "whole":
            ways.append(_summed(need, setting, 0, need.nodes))
        fitting = [part for part in ways if self._fits(part)]
        if fitting:
            return [min(fitting, key=lambda part: part.bytes)]
        most = self._most(need) if summed and not led(need, setting) else 0
        if most == 0 or (-(-need.nodes // most) > STREAM_REPLAYS and not need.dense):
            return []
        return [_summed(need, setting, a, b) for a, b in _ranges(need, most)]

    def _most(self, need: Need) -> int:
        """Return how many nodes' blocks can be added up whole at once."""
        counts = _counts(need)
        fitting = bisect_left(counts, True, key=lambda k: not self._fits(_summed(need, self._setting, 0, k)))
        return counts[fitting - 1] if fitting else 0

    def _fits(self, part: Part) -> bool:
        return part.bytes + max(self._passing, self._solving(part)) <= self._budget

    def _solving(self, part: Part) -> int:
        return _solving(self.needs[part.layer], part, self._setting, self._budget)

    def rounds(self, kept: Sequence[Part], streamed: Sequence[str]) -> tuple[Round, ...]:
        """Pack the parts, each into the first round where it fits."""
        found: list[tuple[list[Part], int, int]] = []
        for part in kept:
            solving = max(self._passing, self._solving(part))
            for place, (parts, size, most) in enumerate(found):
                if size + part.bytes + max(most, solving) <= self._budget:
                    found[place] = [*parts, part], size + part.bytes, max(most, solving)
                    break
            else:
                found.append(([part], part.bytes, solving))
        rounds = [Round(self._ordered(parts), False, size + most) for parts, size, most in found]
        return (*rounds, *self._streams(sorted(streamed, key=self._order.__getitem__)))

    def _ordered(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(sorted(parts, key=lambda part: (self._order[part.layer], part.start)))

    def _streams(self, layers: Sequence[str]) -> list[Round]:
        found: list[list[Part]] = []
        room = self._budget - self._passing
        left = 0
        for name in layers:
            for part in self._streamed(self.needs[name], room):
                if not found or part.bytes > left:
                    found.append([])
                    left = room
                found[-1].append(part)
                left -= part.bytes
        return [
            Round(tuple(parts), True, self._passing + sum(part.bytes for part in parts)) for parts in found
        ]

    def _streamed(self, need: Need, room: int) -> list[Part]:
        """Return a layer in parts whose solvers find room."""
        vectors = solver_vectors(self._setting.solver, need.itemsize) * self._setting.solvers
        each = vectors * need.size * need.itemsize
        fixed = LAYER_VECTORS * need.vector + _leading(need, self._setting)
        count = max(1, min(need.nodes, (room - fixed) // each))
        ends = [(a, min(need.nodes, a + count)) for a in range(0, need.nodes, count)]
        return [Part(need.layer, "streamed", a, b, fixed + (b - a) * each) for a, b in ends]


def _at_once(needs: Sequence[Need], setting: Setting, passing: int) -> Round:
    """Return everything in one round, each layer as is cheapest."""
    parts = tuple(_native(need, setting) for need in needs)
    solving = (_solving(need, part, setting, None) for need, part in zip(needs, parts, strict=True))
    return Round(parts, False, sum(part.bytes for part in parts) + max((passing, *solving)))


def _solving(need: Need, part: Part, setting: Setting, budget: int | None) -> int:
    """Return what solving a part takes beside what is kept."""
    nodes = part.stop - part.start
    vector = nodes * need.size * need.itemsize
    if need.dense:
        tile = min(nodes, max(1, TILE_BYTES // (8 * need.size**2))) * 8 * need.size**2
        basis = 3 * (tile if budget is None else min(tile, max(_workspace(budget), 8 * need.size**2)))
        basis += 4 * 8 * nodes * need.size
    else:
        basis = solver_vectors(setting.solver, need.itemsize) * vector
        if budget is not None:
            basis = min(basis, max(_workspace(budget), basis // max(1, nodes)))
    beside = LAYER_VECTORS * vector + _leading(need, setting)
    return int(SUMS.get(part.form, 0) * part.bytes + beside + basis)


def solver_vectors(solver: str, itemsize: int) -> int:
    """Return how many vectors of a block a solver is taken to hold at once."""
    more = PRECISELY if solver == "lanczos" and itemsize == 8 else 1
    return SOLVER_VECTORS[solver] * more


def _workspace(budget: int) -> int:
    return budget // 4


def _native(need: Need, setting: Setting) -> Part:
    if need.form == "whole":
        return _summed(need, setting, 0, need.nodes)
    return Part(need.layer, need.form, 0, need.nodes, int(need.per_sample * setting.samples))


def _summed(need: Need, setting: Setting, start: int, stop: int) -> Part:
    size = (setting.folds + 1) * (stop - start) * need.size**2 * need.itemsize
    return Part(need.layer, "whole", start, stop, size)


def _counts(need: Need) -> list[int]:
    """Return how many nodes a part may have: whole groups, or some of one."""
    per_group = need.nodes // need.groups
    return [*range(1, per_group), *range(per_group, need.nodes + 1, per_group)]


def _ranges(need: Need, most: int) -> list[tuple[int, int]]:
    per_group = need.nodes // need.groups
    if most >= per_group:
        return [(a, min(need.nodes, a + most)) for a in range(0, need.nodes, most)]
    return [
        (a, min(end, a + most))
        for end in range(per_group, need.nodes + 1, per_group)
        for a in range(end - per_group, end, most)
    ]


def _floor(need: Need, setting: Setting) -> int:
    """Return the least that a layer can be treated with, beside the passes."""
    if need.dense:
        part = _summed(need, setting, 0, 1)
        return part.bytes + _solving(need, part, setting, 0)
    each = solver_vectors(setting.solver, need.itemsize) * setting.solvers * need.size * need.itemsize
    return LAYER_VECTORS * need.vector + _leading(need, setting) + each


def _batch(setting: Setting, room: int) -> int:
    """Return the largest number of samples a pass whose bytes find room."""
    low, high = 1, setting.batch_size
    while low < high:
        middle = (low + high + 1) // 2
        if setting.passing.taken(middle, setting.batch_size) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _too_small(budget: int, least: int, asked: bool) -> UsageError:
    why = f"this model and one sample at a time need {bytes_in_words(least)}"
    if asked:
        do = f"give at least {bytes_in_words(least, up=True)}"
        return UsageError(f"--memory-budget {bytes_in_words(budget)}", why, do)
    why += f", and {bytes_in_words(budget)} may be used"
    return UsageError("memory", why, "give --memory-budget, or a smaller --batch-size")
