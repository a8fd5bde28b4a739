"""Looking once more at samples that a watch has seen: what they tell of units and of linearity is known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from nndiag.replay.kinds import Use
from nndiag.replay.lineage import Lineage
from nndiag.replay.watch import Watch


class Retrace(Watch):
    """A watch that takes note of the uses of layers and of nothing else."""

    def finish(self, output: Tensor) -> None:
        """Nothing was followed."""

    def _followed_from(self, constants: Collection[Tensor]) -> Lineage:
        return _Unfollowed(frozenset())

    def _prove(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object) -> None:
        """Known."""

    def _look_for_unseen(self, given: Iterable[Tensor]) -> None:
        """Known."""

    def _enter(self, use: Use, output: Tensor) -> int:
        """Take note of the use."""
        self.calls.append(self._call(use, output))
        return len(self.calls) - 1

    def _see_states(self, hidden: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Read before."""


class _Unfollowed(Lineage):
    def see(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object, call: int | None
    ) -> None:
        """Nothing is asked of it."""
