"""What the findings of one layer follow from in other layers, put together for its nodes and for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nndiag.rules.across import Blame
from nndiag.rules.base import Hit

_WHOLE = frozenset(["ND252"])
"""What a layer shows as a whole where each of its nodes has a reason elsewhere."""


@dataclass(frozen=True)
class Elsewhere:
    """What the findings of a layer follow from in other layers: all of them, and single nodes' by their index."""

    nodes: int
    layers: tuple[Blame, ...]
    by_node: Mapping[int, Blame]

    @property
    def of_layer(self) -> tuple[Blame, ...]:
        """What is wrong elsewhere with the layer as a whole; where every node has a reason, the first one's."""
        whole = len(self.by_node) == self.nodes and not self.layers
        return (replace(self.by_node[0], channel=False, follow=_WHOLE),) if whole else self.layers

    def of_node(self, index: int) -> tuple[Blame, ...]:
        """What is wrong elsewhere with one node: layers that only start at zero, then the nearest reason."""
        own = self.by_node.get(index)
        every = self.layers if own is None else (own, *self.layers)
        return tuple(sorted(every, key=lambda blame: not blame.harmless))

    def own(self, hits: Mapping[str, list[Hit]]) -> dict[str, list[Hit]]:
        """Return the findings without those that only follow from a layer that starts at zero."""
        return {code: [hit for hit in found if not self._harmless(code, hit)] for code, found in hits.items()}

    def hidden(self, hits: Mapping[str, list[Hit]]) -> set[int]:
        """Return the nodes shut off by a layer that starts at zero: what they do cannot be seen yet."""
        return {
            hit.index
            for code, found in hits.items()
            if code != "ND102"
            for hit in found
            if hit.index is not None and self._covered(code)
        }

    def _harmless(self, code: str, hit: Hit) -> bool:
        return (code == "ND102" and hit.note) or self._covered(code)

    def _covered(self, code: str) -> bool:
        return any(blame.harmless and blame.covers(code) for blame in self.layers)
