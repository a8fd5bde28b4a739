"""What the network does with units replaced: each alone, many in one pass, and all together.

A variant of the network differs in one unit, so that everything before that unit is the same for all of them:
``torch.func.vmap`` over the units of a layer runs that part once and only the rest for each. Where the model's code
does not go through it, variants run one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from nndiag.measures.compared import ENTRIES, MOST_VARIANTS, Compared, Tried, at_once
from nndiag.measures.replacing import Moments, Replacement
from nndiag.probe.probe import Batch, Probe
from nndiag.replay.altering import Alteration, Altering
from nndiag.replay.layers import owners
from nndiag.replay.orientation import layers_in_use
from nndiag.replay.passes import forward, main_output
from nndiag.replay.state import undisturbed


@dataclass(frozen=True)
class Trials:
    """The loss as it is; what each replacement does alone, ``None`` for units that were not seen; what those that were
    seen do together; and how many forward passes over the probe, or parts of one, it took.
    """

    loss: float | None
    alone: tuple[Tried | None, ...]
    together: Tried | None
    passes: int


def try_replacements(
    model: nn.Module, probe: Probe, wanted: Sequence[Replacement], seed: int = 0, entries: int = ENTRIES
) -> Trials:
    """Try replacements of units on a probe.

    A unit that puts out one number for all of the probe is replaced by itself: it changes nothing, alone, and takes no
    pass. The others take ``1/V`` of a pass each over what follows them, ``V`` as many as ``entries`` allow.

    Args:
        model: with the weights to try; left exactly as it was.
        probe: samples, targets and loss.
        wanted: the replacements.
        seed: of torch's generators, for models that draw numbers.
        entries: of the largest output of a layer, all variants of a pass together.

    Raises:
        NonFiniteOutputError: there is nothing that could be compared.
        ModelError: the model does not run on the probe.
    """
    with undisturbed(model, seed), torch.no_grad():
        return _Trying(model, probe, seed, entries).run(wanted)


class _Trying:
    """The passes."""

    def __init__(self, model: nn.Module, probe: Probe, seed: int, entries: int) -> None:
        self._model, self._probe, self._seed, self._entries = model, probe, seed, entries
        self._layers = layers_in_use(model, probe.inputs)
        self._owners = owners(model, self._layers)
        self._constants = tuple(chain(model.parameters(), model.buffers()))
        self._passes = 0

    def run(self, wanted: Sequence[Replacement]) -> Trials:
        moments = Moments(wanted)
        compared = Compared(self._probe, self._seed, lambda batch: self._plain(batch, moments))
        seen = moments.alterations()
        changing = [one for one in wanted if one.layer in seen and not seen[one.layer].constant[one.index]]
        moving = frozenset(changing)
        found: dict[Replacement, Tried] = {
            one: Tried(compared.loss, 0.0) for one in wanted if one.layer in seen and one not in moving
        }
        for tile in self._tiles(changing, moments.sizes):
            layer = seen[tile[0].layer]
            alterations = [{tile[0].layer: layer.of([one.index])} for one in tile]
            found |= zip(tile, self._tried(alterations, compared, moments.calls), strict=True)
        together = None
        if found:
            every = {
                name: layer.of([one.index for one in wanted if one.layer == name])
                for name, layer in seen.items()
            }
            (together,) = self._tried([every], compared, moments.calls)
        return Trials(compared.loss, tuple(found.get(one) for one in wanted), together, self._passes)

    def _plain(self, batch: Batch, moments: Moments) -> Tensor:
        self._passes += 1
        seen = forward(self._model, batch.inputs, self._owners, moments)
        moments.take(seen)
        return seen.output.detach()

    def _tiles(
        self, changing: Sequence[Replacement], sizes: Mapping[str, int]
    ) -> Iterator[list[Replacement]]:
        largest = max(sizes.values(), default=1)
        width = max(1, min(MOST_VARIANTS, self._entries // max(largest, 1)))
        by_layer: dict[str, list[Replacement]] = {}
        for one in changing:
            by_layer.setdefault(one.layer, []).append(one)
        for own in by_layer.values():
            yield from (own[start : start + width] for start in range(0, len(own), width))

    def _tried(
        self, variants: Sequence[Mapping[str, Alteration]], compared: Compared, calls: Mapping[str, int]
    ) -> list[Tried]:
        """Run variants that alter the same layers, all at once where the model allows it."""
        # a second call of the layer sees what the variants of the first made of its input: one at a time
        together = len(variants) > 1 and all(calls[name] == 1 for one in variants for name in one)

        def outputs_of(batch: Batch) -> Tensor:
            outputs = self._at_once(variants, batch) if together else None
            return (
                torch.stack([self._altered(one, batch) for one in variants]) if outputs is None else outputs
            )

        return compared.tried(len(variants), outputs_of)

    def _at_once(self, variants: Sequence[Mapping[str, Alteration]], batch: Batch) -> Tensor | None:
        """Return the outputs of all variants, ``(variants, batch, ...)``, where that can be done."""
        (name,) = variants[0]
        stacked = _stacked([one[name] for one in variants])

        def one(changed: Tensor, offset: Tensor, slope: Tensor | None, other: Tensor | None) -> Tensor:
            part = Alteration(changed, offset, slope, other, stacked.activated)
            return self._altered({name: part}, batch)

        given = (stacked.changed, stacked.offset, stacked.slope, stacked.other)
        axes = tuple(None if x is None else 0 for x in given)
        return at_once(lambda: torch.vmap(one, in_dims=axes, randomness="same")(*given))

    def _altered(self, alterations: Mapping[str, Alteration], batch: Batch) -> Tensor:
        self._passes += 1
        with Altering(self._owners, self._constants, alterations):
            return main_output(self._model(*batch.inputs))


def _stacked(parts: Sequence[Alteration]) -> Alteration:
    """Return alterations of one layer as one, variants along the first axis."""
    first = parts[0]
    slope = (
        None if first.slope is None else torch.stack([one.slope for one in parts if one.slope is not None])
    )
    other = (
        None if first.other is None else torch.stack([one.other for one in parts if one.other is not None])
    )
    return Alteration(
        torch.stack([one.changed for one in parts]), torch.stack([one.offset for one in parts]), slope, other,
        first.activated,
    )  # fmt: skip
