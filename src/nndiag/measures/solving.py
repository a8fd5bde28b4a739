"""Carrying a schedule out: replay after replay, the curvature of the layers of one round after that of another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from nndiag.measures.capture import Capture
from nndiag.measures.curvature import (
    CurvatureSettings,
    LayerCurvature,
    joined,
    layer_curvature,
    solved_densely,
)
from nndiag.measures.look import Look
from nndiag.measures.plan import LayerRule, Update
from nndiag.measures.receivers import Keeping, Receiver
from nndiag.measures.replaying import Replay
from nndiag.measures.schedule import STREAM_REPLAYS, Need, Part, Round, Schedule, led, rounds_of
from nndiag.measures.stages import Stages
from nndiag.measures.streaming import StreamedLayer, Streaming
from nndiag.replay.kinds import Layer

PRECISE_TOLERANCE, FINE_TOLERANCE, COARSE_TOLERANCE = 5e-7, 5e-4, 2e-2
"""Residuals accepted from a solver, relative to the largest eigenvalue, whose own error is of second order: 0.14 % at
most at 2 %, on trained networks. The coarse one where columns are sampled, or a product takes long."""
SOLVING_WEIGHT = 0.5
"""What solving for kept layers counts beside their replay, for the progress."""


class Solving:
    """The rounds of one measurement.

    Args:
        replay: looked at, but not run.
        look: what it showed.
        schedule: the rounds.
        update: the update rule, where it is known.
        stages: told of the progress; ``weights`` are what it is to expect.

    ``found`` are the results by layer, ``seconds`` what the solvers and the replays made for them took, ``most_kept``
    the most bytes kept at once, ``replays`` how often the probe was replayed.
    """

    def __init__(
        self, replay: Replay, look: Look, schedule: Schedule, update: Update | None, stages: Stages
    ) -> None:
        self.found: dict[str, LayerCurvature] = {}
        self.seconds = 0.0
        self.most_kept = self.replays = 0
        self.replay, self._look, self.schedule = replay, look, schedule
        self._update, self._stages = update, stages
        self._pieces: dict[str, list[tuple[int, LayerCurvature]]] = {}
        self._needs = {need.layer: need for need in look.needs}
        self._layers = {layer.name: layer for layer in replay.layers}
        replay.part_size, replay.held_passes = schedule.batch_size, max(1, look.columns)

    def run(self) -> None:
        """Carry out every round, and those of layers that did not fit after all."""
        waiting = list(self.schedule.rounds)
        while waiting or not self.replays:
            now = waiting.pop(0)
            self._stages.begin()
            elsewhere = frozenset(part.layer for later in waiting for part in later.parts)
            again = self._streamed(now) if now.streamed else self._kept(now, elsewhere)
            if again:
                waiting += again
                self._stages.expect(weights(waiting))
        order = {name: place for place, name in enumerate(self._layers)}
        for name in sorted(self._pieces, key=order.__getitem__):
            if name not in self.replay.left_out:
                pieces = sorted(self._pieces[name], key=lambda piece: piece[0])
                self.found[name] = joined([found for _, found in pieces])

    def _kept(self, now: Round, elsewhere: frozenset[str]) -> tuple[Round, ...]:
        """Replay once and solve for what was kept; return rounds for what did not fit."""
        replay, probe = self.replay, self.replay.probe
        besides = now.bytes - sum(part.bytes for part in now.parts)
        keeping = Keeping(
            now.parts,
            (elsewhere | frozenset(self._pieces)) - {part.layer for part in now.parts},
            samples=len(probe),
            folds=probe.fold_count,
            dense=replay.plan.solver == "dense",
            capacity=self.schedule.budget - besides,
        )
        self._run(keeping, f"replaying the probe{self._which()}")
        self.most_kept = max(self.most_kept, keeping.bytes)
        begun = time.perf_counter()
        names = list(keeping.captures)
        for place, name in enumerate(names):
            self._tell_layer(name, place, len(names))
            for part, capture in keeping.captures.pop(name):
                self._solve(part, capture)
        self.seconds += time.perf_counter() - begun
        return self._anew(keeping)

    def _solve(self, part: Part, capture: Capture) -> None:
        layer = capture.layer
        nodes = slice(part.start, part.stop)
        found = layer_curvature(
            capture.blocks(), self.replay.probe.fold_sizes, self.settings, self._rule(layer).of(nodes),
            self.schedule.workspace, (part.start, layer.nodes),
        )  # fmt: skip
        self._pieces.setdefault(layer.name, []).append((part.start, found))

    def _anew(self, keeping: Keeping) -> tuple[Round, ...]:
        """Return rounds for the layers that turned out larger than the look let expect."""
        if not keeping.given_up:
            return ()
        setting = self._look.setting
        passing = setting.passing.taken(self.schedule.batch_size, setting.batch_size)
        needs = []
        for name, per_sample in keeping.given_up.items():
            need = self._needs.get(name) or self._unforeseen(self._layers[name])
            self._needs[name] = replace(need, per_sample=max(1.25 * per_sample, 1.25 * need.per_sample))
            needs.append(self._needs[name])
        return rounds_of(needs, setting, self.schedule.budget, passing)

    def _unforeseen(self, layer: Layer) -> Need:
        """Return the need of a layer that the look did not show: it is kept as rows."""
        itemsize = next(self.replay.model.parameters()).element_size()
        dense = solved_densely(layer.size, self.replay.plan.solver)
        return Need(
            layer.name,
            layer.nodes,
            layer.size,
            itemsize,
            "implicit",
            0.0,
            float("inf"),
            0.0,
            dense,
            layer.groups,
        )

    def _streamed(self, now: Round) -> tuple[Round, ...]:
        """Replay for as long as a solver of the round asks for products."""
        replay = self.replay
        ranges: dict[str, list[tuple[int, int]]] = {}
        for part in now.parts:
            ranges.setdefault(part.layer, []).append((part.start, part.stop))
        like = next(p for p in replay.model.parameters() if p.is_floating_point()).detach()
        layers = {}
        for name, own in ranges.items():
            rule = self._rule(self._layers[name])
            sizes, settings = replay.probe.fold_sizes, self.settings
            layers[name] = StreamedLayer(
                self._layers[name], own, like, sizes, settings, rule,
                led(self._needs[name], self._look.setting),
            )  # fmt: skip
        streaming = Streaming(layers, replay.probe.fold_sizes)
        replays, captured = 0, replay.capture_seconds
        asking = True
        while asking:
            expected = max(STREAM_REPLAYS, replays + 1)
            self._run(streaming, f"curvature of {_named(now.parts)}{self._which()}", replays, expected)
            replays += 1
            begun = time.perf_counter()
            asking = streaming.advance()
            self.seconds += time.perf_counter() - begun
        # replays that are made for a solver are its products
        self.seconds += replay.capture_seconds - captured
        replay.capture_seconds = captured
        for name, layer in streaming.layers.items():
            if name not in replay.left_out:
                self._pieces.setdefault(name, []).append((ranges[name][0][0], layer.curvature()))
        return ()

    def _run(self, receiver: Receiver, what: str, before: int = 0, of: int = 1) -> None:
        """Replay the probe, as the first time or again."""
        samples = len(self.replay.probe)
        solving = SOLVING_WEIGHT if isinstance(receiver, Keeping) else 0.0

        def progress(done: int) -> None:
            self._stages.tell(what, before + done / samples, of * (1 + solving))

        if self.replays:
            self.replay.again(receiver, progress)
        else:
            self.replay.first(receiver, progress)
        self.replays += 1

    @property
    def settings(self) -> CurvatureSettings:
        """How to solve."""
        plan = self.replay.plan
        tolerance = plan.tolerance
        if tolerance is None:
            tolerance = COARSE_TOLERANCE if self.replay.sampling.coarse else fine_tolerance(self.replay)
        return CurvatureSettings(plan.solver, tolerance, plan.seed)

    def _rule(self, layer: Layer) -> LayerRule:
        """Return how the optimiser sees a layer."""
        return LayerRule() if self._update is None else self._update.layer_rule(layer)

    def _which(self) -> str:
        count = len(self.schedule.rounds)
        return "" if count == 1 else f", replay {self.replays + 1}"

    def _tell_layer(self, name: str, place: int, count: int) -> None:
        done, every = len(self._pieces) + 1, len(self._layers)
        what = f"curvature of layer {name} ({min(done, every)} of {every})"
        self._stages.tell(what, 1 + SOLVING_WEIGHT * place / max(1, count), 1 + SOLVING_WEIGHT)


def fine_tolerance(replay: Replay) -> float:
    """Return the largest error accepted where nothing is sampled."""
    return PRECISE_TOLERANCE if replay.precise else FINE_TOLERANCE


def weights(rounds: Sequence[Round]) -> list[float]:
    """Return what rounds count for the progress."""
    return [STREAM_REPLAYS if one.streamed else 1 + SOLVING_WEIGHT for one in rounds]


def _named(parts: Sequence[Part]) -> str:
    names = list(dict.fromkeys(part.layer for part in parts))
    return f"layer {names[0]}" if len(names) == 1 else f"{len(names)} layers together"
