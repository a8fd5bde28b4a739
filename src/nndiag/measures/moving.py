"""What the network does when nodes' own parameters move: each alone, many in one pass, and all together.

Everything before the layer of a node is the same in all variants, as with units that are replaced (``trying``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nndiag.measures.compared import ENTRIES, MOST_VARIANTS, Compared, Tried, at_once
from nndiag.probe.probe import Batch, Probe
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import owners
from nndiag.replay.orientation import layers_in_use
from nndiag.replay.passes import forward, main_output
from nndiag.replay.separation import Blind
from nndiag.replay.state import undisturbed


@dataclass(frozen=True, eq=False)
class Move:
    """A change of one node's parameters: ``by`` is ``(size,)``, added to the node's row."""

    layer: str
    index: int
    by: Tensor


@dataclass(frozen=True)
class Moved:
    """The loss as it is, what each move does alone, and what all of them do together, ``None`` where there are none."""

    loss: float | None
    alone: tuple[Tried, ...]
    together: Tried | None


def try_moves(
    model: nn.Module, probe: Probe, wanted: Sequence[Move], seed: int = 0, entries: int = ENTRIES
) -> Moved:
    """Try moves of nodes on a probe.

    Args:
        model: with the weights to start from; left exactly as it was.
        probe: samples, targets and loss.
        wanted: the moves, at most one for each node.
        seed: of torch's generators, for models that draw numbers.
        entries: of the largest output or parameter of a layer, all variants of a pass together.

    Raises:
        NonFiniteOutputError: there is nothing that could be compared.
        ModelError: the model does not run on the probe.
    """
    with undisturbed(model, seed), torch.no_grad():
        return _Moving(model, probe, seed, entries).run(wanted)


def moved_parameters(
    model: nn.Module, layers: Mapping[str, Layer], wanted: Sequence[Move]
) -> dict[str, Tensor]:
    """Return the parameters that moves change, by name, after all of them; ``layers`` are the model's, by name."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for one in wanted:
        layer = layers[one.layer]
        for slot in layer.slots:
            rows = slot.rows(found.get(slot.parameter, named[slot.parameter]).detach()).clone()
            rows[one.index] += one.by[layer.place(slot)].to(rows)
            found[slot.parameter] = slot.parameter_of(rows)
    return found


class _Moving:
    """The passes."""

    def __init__(self, model: nn.Module, probe: Probe, seed: int, entries: int) -> None:
        self._model, self._entries = model, entries
        found = layers_in_use(model, probe.inputs)
        self._layers = {layer.name: layer for layer in found}
        self._owners = owners(model, found)
        self._named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._largest = 1
        self._compared = Compared(probe, seed, self._plain)

    def run(self, wanted: Sequence[Move]) -> Moved:
        found: dict[Move, Tried] = {}
        for tile in self._tiles(wanted):
            found |= zip(tile, self._tried(tile), strict=True)
        together = None
        if wanted:
            every = moved_parameters(self._model, self._layers, wanted)
            (together,) = self._compared.tried(1, lambda batch: self._with(every, batch)[None])
        return Moved(self._compared.loss, tuple(found[one] for one in wanted), together)

    def _plain(self, batch: Batch) -> Tensor:
        seen = forward(self._model, batch.inputs, self._owners, Blind())
        self._largest = max([self._largest, *(math.prod(call.shape) for call in seen.calls)])
        return seen.output.detach()

    def _tiles(self, wanted: Sequence[Move]) -> Iterator[list[Move]]:
        by_layer: dict[str, list[Move]] = {}
        for one in wanted:
            by_layer.setdefault(one.layer, []).append(one)
        for name, own in by_layer.items():
            largest = max(self._largest, self._layers[name].parameters)
            width = max(1, min(MOST_VARIANTS, self._entries // largest))
            yield from (own[start : start + width] for start in range(0, len(own), width))

    def _tried(self, tile: Sequence[Move]) -> list[Tried]:
        """Run moves of nodes of one layer, all at once where the model allows it."""
        layer = self._layers[tile[0].layer]
        rows = torch.stack([one.by for one in tile])
        chosen = torch.zeros(len(tile), layer.nodes, dtype=rows.dtype)
        chosen[torch.arange(len(tile)), torch.tensor([one.index for one in tile])] = 1.0

        def outputs_of(batch: Batch) -> Tensor:
            def run(node: Tensor, by: Tensor) -> Tensor:
                return self._with(self._shifted(layer, node, by), batch)

            found = (
                at_once(lambda: torch.vmap(run, randomness="same")(chosen, rows)) if len(tile) > 1 else None
            )
            if found is None:
                found = torch.stack([run(node, by) for node, by in zip(chosen, rows, strict=True)])
            return found

        return self._compared.tried(len(tile), outputs_of)

    def _shifted(self, layer: Layer, node: Tensor, by: Tensor) -> dict[str, Tensor]:
        found = {}
        for slot in layer.slots:
            tensor = self._named[slot.parameter].detach()
            shift = slot.parameter_of(node[:, None] * by[None, layer.place(slot)])
            found[slot.parameter] = tensor + shift.to(tensor)
        return found

    def _with(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return main_output(functional_call(self._model, dict(parameters), batch.inputs))
