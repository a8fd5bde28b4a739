"""Layers whose rows are not kept: every product is made of rows that a replay shows and that are then forgotten.

The solvers of all layers of a round work in step: one replay answers what each of them asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nndiag.measures.blocks import NodeBlocks, OuterBlocks
from nndiag.measures.capture import Capture
from nndiag.measures.curvature import CurvatureSettings, LayerCurvature, curvature_of, solving
from nndiag.measures.folds import FoldRows
from nndiag.measures.plan import LayerRule
from nndiag.measures.shown import Shown
from nndiag.replay.kinds import Layer
from nndiag.spectrum import (
    Asking,
    Extremes,
    Lead,
    Leading,
    Request,
    fills,
    joined,
    placed,
    random_vectors,
    scaled,
)


class Streaming:
    """Answers the solvers of some layers, replay by replay.

    Args:
        layers: by name.
        fold_sizes: samples of every fold, ``(folds,)``.
    """

    def __init__(self, layers: Mapping[str, StreamedLayer], fold_sizes: Tensor) -> None:
        self.layers = dict(layers)
        self._fold_sizes = fold_sizes

    def wants(self, layer: str) -> bool:
        """Whether a layer is not done."""
        return layer in self.layers and not self.layers[layer].done

    def take(self, shown: Shown, folds: FoldRows) -> None:
        """Use what passes showed of a layer."""
        layer = shown.use.layer
        capture = self._capture(layer)
        capture.add(shown, folds)
        self.layers[layer.name].take(capture.blocks())

    def take_jacobians(self, layer: Layer, rows: Tensor, folds: FoldRows) -> None:
        """Use the Jacobians of some samples."""
        capture = self._capture(layer)
        capture.add_jacobians(rows, folds)
        self.layers[layer.name].take(capture.blocks())

    def drop(self, layer: str) -> None:
        """Forget a layer."""
        self.layers.pop(layer, None)

    def advance(self) -> bool:
        """Send the solvers what the replay gave; say whether another one is needed."""
        for layer in self.layers.values():
            if not layer.done:
                layer.advance()
        return not all(layer.done for layer in self.layers.values())

    def _capture(self, layer: Layer) -> Capture:
        return Capture(layer, int(self._fold_sizes.sum()), len(self._fold_sizes), way="implicit")


class StreamedLayer:
    """The solvers of nodes of one layer, and sums over the replay that is under way.

    Args:
        layer: the layer.
        ranges: nodes ``(start, stop)`` to be solved for.
        like: gives dtype and device of the vectors.
        fold_sizes: samples of every fold.
        settings: how to solve.
        rule: how the optimiser sees its blocks, where that is known.
        led: whether what the inputs have in common is looked at first, as where the rows of the layer are kept.
    """

    semidefinite = True
    rank_bound: int

    def __init__(
        self,
        layer: Layer,
        ranges: Sequence[tuple[int, int]],
        like: Tensor,
        fold_sizes: Tensor,
        settings: CurvatureSettings,
        rule: LayerRule,
        led: bool = False,
    ) -> None:
        self.nodes, self.size, self.rank_bound = layer.nodes, layer.size, 0
        self._ranges, self._like, self._settings = list(ranges), like, settings
        self._fold_sizes, self._rule = fold_sizes, rule
        self._plain: list[_Task] = []
        self._seen: list[_Task] = []
        self._scales: list[Tensor] = []
        self._traces, self._forms, self._of_seen = torch.zeros(()), torch.zeros(()), torch.zeros(())
        self._first, self._formed = True, False
        self._questions: list[_Question] = []
        self._directions: Tensor | None = None
        self._seen_directions: Tensor | None = None
        self._leading = Leading(layer.nodes, layer.size, int(fold_sizes.sum()), like) if led else None
        if not led:
            self._begin(None)

    def _begin(self, lead: Lead | None) -> None:
        """Set the solvers to work."""
        generator = torch.Generator().manual_seed(self._settings.seed)
        starts = lead.vectors if lead else random_vectors(self.nodes, self.size, self._like, generator)
        for a, b in self._ranges:
            own = None if lead is None else lead.restricted(torch.arange(a, b, device=starts.device))
            traces = partial(self._traces_of, a, b)
            solver = solving(_Nodes(self, b - a), starts[a:b], self._settings, False, own, traces)
            self._plain.append(_Task(a, b, solver))
        if self._rule.divisor is not None:
            starts = random_vectors(self.nodes, self.size, self._like, generator)
            for a, b in self._ranges:
                scale, decay = self._rule.of(slice(a, b)).scaling(self._like)
                solver = solving(_Nodes(self, b - a, full=fills(decay)), starts[a:b], self._settings, False)
                self._seen.append(_Task(a, b, scaled(solver, scale, decay)))
                self._scales.append(scale)
        self._ask()

    @property
    def done(self) -> bool:
        """Whether everything is known."""
        return self._formed and all(task.found is not None for task in (*self._plain, *self._seen))

    def take(self, blocks: NodeBlocks) -> None:
        """Add what some rows of the probe amount to."""
        for question in self._questions:
            question.image += blocks.product(question.vectors)
        if self._directions is not None:
            forms = blocks.forms_by_fold(self._directions, len(self._fold_sizes))
            self._forms = self._forms.to(forms) + forms
        if self._seen_directions is not None:
            forms = blocks.forms_by_fold(self._seen_directions, len(self._fold_sizes))
            self._of_seen = self._of_seen.to(forms) + forms
        if self._first:
            traces = blocks.traces()
            self._traces = self._traces.to(traces) + traces
            self.rank_bound = min(self.size, self.rank_bound + blocks.rank_bound)
        if self._leading is not None:
            assert isinstance(blocks, OuterBlocks)
            self._leading.add(blocks.inputs, blocks.weights)

    def advance(self) -> None:
        """Send the solvers their images, and ask what they want next."""
        self._first = False
        if self._leading is not None:
            self._lead(self._leading)
            return
        self._formed = self._formed or self._directions is not None
        for question in self._questions:
            for task in question.tasks:
                task.answer(question.image)
        self._ask()

    def _lead(self, leading: Leading) -> None:
        """Go on with what comes before the solvers, and begin these after it."""
        if not leading.found:
            leading.sweep()
            return
        self._leading = None
        self._begin(leading.lead(self._traces, self._settings.tolerance)[0])

    def curvature(self) -> LayerCurvature:
        """Return the results for the nodes of the ranges, once everything is known."""
        own = torch.cat([torch.arange(task.start, task.stop) for task in self._plain])
        found = joined([task.result for task in self._plain])
        seen = joined([task.result for task in self._seen]) if self._seen else None
        own = own.to(self._traces.device)
        forms, of_seen = [self._forms[:, own]], self._of_seen[:, own] if self._seen else None
        facts = self._rule.facts
        return curvature_of(found, seen, self._traces[own], forms, self._fold_sizes, facts, of_seen)

    def _traces_of(self, start: int, stop: int) -> Tensor:
        """Return the traces of some nodes, known after the first replay."""
        return self._traces[start:stop]

    def _ask(self) -> None:
        """Put the vectors that solvers want multiplied side by side, those of all ranges in one tensor."""
        waiting = [[task for task in tasks if task.found is None] for tasks in (self._plain, self._seen)]
        self._questions = [self._question(tasks) for tasks in waiting if tasks]
        self._directions = self._seen_directions = None
        if not any(waiting) and not self._formed:
            self._directions = self._placed(self._plain, [task.result.vectors for task in self._plain])
            own = [task.result.vectors * scale for task, scale in zip(self._seen, self._scales, strict=True)]
            self._seen_directions = self._placed(self._seen, own) if own else None

    def _placed(self, tasks: Sequence[_Task], vectors: Sequence[Tensor]) -> Tensor:
        """Put vectors of all tasks side by side, ``(nodes, size)``."""
        parts = [task.placed(own, None, self.nodes) for task, own in zip(tasks, vectors, strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    def _question(self, tasks: list[_Task]) -> _Question:
        vectors: Tensor | None = None
        for task in tasks:
            own = task.placed(task.request.vectors, task.request.index, self.nodes)
            vectors = own if vectors is None else vectors.add_(own)
        assert vectors is not None
        return _Question(tasks, vectors, torch.zeros_like(vectors))


@dataclass(frozen=True)
class _Nodes:
    """What a solver of some nodes of a layer knows; the rank becomes known in the first replay."""

    layer: StreamedLayer
    nodes: int
    full: bool = False
    semidefinite: bool = True

    @property
    def size(self) -> int:
        return self.layer.size

    @property
    def rank_bound(self) -> int:
        return self.size if self.full else self.layer.rank_bound


@dataclass
class _Question:
    """Vectors of all nodes of a layer, ``(nodes, size)``, the sum of their images so far, and who asks."""

    tasks: list[_Task]
    vectors: Tensor
    image: Tensor


class _Task:
    """A solver of the nodes ``start:stop``, what it asks for, and in the end what it found."""

    def __init__(self, start: int, stop: int, solver: Asking) -> None:
        self.start, self.stop = start, stop
        self.found: Extremes | None = None
        self._solver = solver
        self.request: Request = next(solver)

    @property
    def result(self) -> Extremes:
        """What it found."""
        assert self.found is not None
        return self.found

    def placed(self, vectors: Tensor, index: Tensor | None, nodes: int) -> Tensor:
        """Return vectors of some of its nodes as ``(nodes, size)``, zero for the others."""
        if index is None and self.stop - self.start == nodes:
            return vectors
        return placed(vectors, self._places(index, vectors.device), nodes)

    def answer(self, image: Tensor) -> None:
        """Send it the images of its vectors from those of all nodes."""
        index = self.request.index
        every = index is None and self.stop - self.start == len(image)
        own = image if every else image[self._places(index, image.device)]
        try:
            self.request = self._solver.send(own)
        except StopIteration as ended:
            self.found = ended.value

    def _places(self, index: Tensor | None, device: torch.device) -> Tensor:
        every = torch.arange(self.start, self.stop, device=device)
        return every if index is None else every[index]
