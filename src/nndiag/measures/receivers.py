"""What is done with the rows that a replay shows of the layers: here they are kept, up to a capacity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from nndiag.measures.capture import Capture, Way
from nndiag.measures.folds import FoldRows
from nndiag.measures.schedule import Part
from nndiag.measures.shown import Shown
from nndiag.replay.kinds import Layer


class Receiver(Protocol):
    """Told by a replay what its passes show of the layers that it wants."""

    def wants(self, layer: str) -> bool:
        """Whether a layer is to be looked at, by its name."""

    def take(self, shown: Shown, folds: FoldRows) -> None:
        """Take what the passes after one forward pass showed of a layer, as ``Capture.add`` does."""

    def take_jacobians(self, layer: Layer, rows: Tensor, folds: FoldRows) -> None:
        """Take the Jacobians of some samples, as ``Capture.add_jacobians`` does."""

    def drop(self, layer: str) -> None:
        """Forget a layer: its samples are not apart after all."""


class Keeping:
    """Keeps rows, or their sums, of parts of layers.

    Args:
        parts: what to keep, and in which form.
        elsewhere: names of layers that are treated in another round. A layer that is neither among them nor among the
            parts is one that the look at the first samples did not show, and is kept too.
        samples: of the whole probe.
        folds: of the probe.
        dense: whether the solver wants the blocks themselves.
        capacity: bytes that may be kept. Where more comes than was expected, the largest layers are given up.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        elsewhere: frozenset[str],
        *,
        samples: int,
        folds: int,
        dense: bool,
        capacity: int,
    ) -> None:
        self.captures: dict[str, list[tuple[Part, Capture]]] = {}
        self.given_up: dict[str, float] = {}
        self._parts: dict[str, list[Part]] = {}
        for part in parts:
            self._parts.setdefault(part.layer, []).append(part)
        self._elsewhere, self._capacity = elsewhere, capacity
        self._samples, self._folds, self._dense = samples, folds, dense
        self._taken: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """What is kept."""
        return sum(capture.bytes for pairs in self.captures.values() for _, capture in pairs)

    def wants(self, layer: str) -> bool:
        """Whether a layer is kept in this round."""
        return layer not in self._elsewhere and layer not in self.given_up

    def take(self, shown: Shown, folds: FoldRows) -> None:
        """Keep what passes showed of a layer."""
        layer = shown.use.layer
        for _, capture in self._of(layer):
            capture.add(shown, folds)
        self._weigh(layer.name, len(folds))

    def take_jacobians(self, layer: Layer, rows: Tensor, folds: FoldRows) -> None:
        """Keep Jacobians of some samples."""
        for _, capture in self._of(layer):
            capture.add_jacobians(rows, folds)
        self._weigh(layer.name, len(folds))

    def drop(self, layer: str) -> None:
        """Forget a layer."""
        self.captures.pop(layer, None)

    def _of(self, layer: Layer) -> list[tuple[Part, Capture]]:
        if layer.name not in self.captures:
            parts = self._parts.get(layer.name, [Part(layer.name, "streamed", 0, layer.nodes, 0)])
            self.captures[layer.name] = [(part, self._capture(layer, part)) for part in parts]
        return self.captures[layer.name]

    def _capture(self, layer: Layer, part: Part) -> Capture:
        unforeseen = part.form == "streamed"
        way: Way | None = None
        if not unforeseen:
            way = part.form if part.form in ("whole", "rows") else "implicit"
        dense = self._dense and unforeseen
        return Capture(layer, self._samples, self._folds, dense, way=way, nodes=(part.start, part.stop))

    def _weigh(self, layer: str, rows: int) -> None:
        """Give layers up while more is kept than may be."""
        self._taken[layer] = self._taken.get(layer, 0) + rows
        while self.captures and self.bytes > self._capacity:
            sizes = {name: sum(c.bytes for _, c in pairs) for name, pairs in self.captures.items()}
            largest = max(sizes, key=sizes.__getitem__)
            del self.captures[largest]
            self.given_up[largest] = sizes[largest] / min(self._taken[largest], self._samples)
