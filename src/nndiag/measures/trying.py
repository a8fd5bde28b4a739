"""What the network does with units replaced: each alone, many in one pass, and all together.

A variant of the network differs in one unit, so that everything before that unit is the same for all of them:
``torch.func.vmap`` over the units of a layer runs that part once and only the rest for each. Where the model's code
does not go through it, variants run one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from nndiag.errors import NndiagError
from nndiag.measures.replacing import Moments, Replacement
from nndiag.measures.replaying import NonFiniteOutputError
from nndiag.probe.probe import Batch, Probe
from nndiag.replay.altering import Alteration, Altering
from nndiag.replay.layers import owners
from nndiag.replay.orientation import layers_in_use
from nndiag.replay.passes import forward, main_output
from nndiag.replay.state import undisturbed

ENTRIES = 2**24
"""Numbers that the largest output of a layer may take for all variants of a pass together."""
MOST_VARIANTS = 256


@dataclass(frozen=True)
class Tried:
    """What the network does in one variant: its loss, ``None`` without targets, and the largest change of an output,
    ``max |f − f₀| / max |f₀|`` over the probe.
    """

    loss: float | None
    output_change: float


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
        plain = [self._plain(batch, moments) for batch in self._batches()]
        scale = max(float(one.abs().max()) for one in plain) or 1.0
        if not math.isfinite(scale):
            raise NonFiniteOutputError(
                "model", "its outputs on the probe are not finite", "look at its weights first"
            )
        before = [self._losses(one[None], batch) for one, batch in zip(plain, self._batches(), strict=True)]
        loss = self._mean(before, 0)
        seen = moments.alterations()
        changing = [one for one in wanted if one.layer in seen and not seen[one.layer].constant[one.index]]
        moving = frozenset(changing)
        found: dict[Replacement, Tried] = {
            one: Tried(loss, 0.0) for one in wanted if one.layer in seen and one not in moving
        }
        for tile in self._tiles(changing, moments.sizes):
            layer = seen[tile[0].layer]
            alterations = [{tile[0].layer: layer.of([one.index])} for one in tile]
            found |= zip(tile, self._tried(alterations, plain, scale, moments.calls), strict=True)
        together = None
        if found:
            every = {
                name: layer.of([one.index for one in wanted if one.layer == name])
                for name, layer in seen.items()
            }
            (together,) = self._tried([every], plain, scale, moments.calls)
        return Trials(loss, tuple(found.get(one) for one in wanted), together, self._passes)

    def _batches(self) -> Iterator[Batch]:
        # a model that draws numbers in its forward pass draws the same ones in every variant
        torch.default_generator.manual_seed(self._seed)
        return self._probe.batches()

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
        self,
        variants: Sequence[Mapping[str, Alteration]],
        plain: Sequence[Tensor],
        scale: float,
        calls: Mapping[str, int],
    ) -> list[Tried]:
        """Run variants that alter the same layers, all at once where the model allows it."""
        change = torch.zeros(len(variants), dtype=torch.float64)
        losses = []
        # a second call of the layer sees what the variants of the first made of its input: one at a time
        together = len(variants) > 1 and all(calls[name] == 1 for one in variants for name in one)
        for batch, before in zip(self._batches(), plain, strict=True):
            outputs = self._at_once(variants, batch) if together else None
            if outputs is None:
                outputs = torch.stack([self._altered(one, batch) for one in variants])
            difference = (outputs - before).abs().flatten(1).amax(dim=1).double().cpu()
            change = torch.maximum(change, difference.nan_to_num(nan=float("inf")))
            losses.append(self._losses(outputs, batch))
        return [Tried(self._mean(losses, v), float(change[v]) / scale) for v in range(len(variants))]

    def _at_once(self, variants: Sequence[Mapping[str, Alteration]], batch: Batch) -> Tensor | None:
        """Return the outputs of all variants, ``(variants, batch, ...)``; ``None`` where the model's code, or what
        torch can do with it, does not allow it.
        """
        (name,) = variants[0]
        stacked = _stacked([one[name] for one in variants])

        def one(changed: Tensor, offset: Tensor, slope: Tensor | None, other: Tensor | None) -> Tensor:
            part = Alteration(changed, offset, slope, other, stacked.activated)
            return self._altered({name: part}, batch)

        given = (stacked.changed, stacked.offset, stacked.slope, stacked.other)
        state = torch.get_rng_state()
        try:
            return torch.vmap(one, in_dims=tuple(None if x is None else 0 for x in given), randomness="same")(
                *given
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, NotImplementedError, NndiagError):
            torch.set_rng_state(state)
            return None

    def _altered(self, alterations: Mapping[str, Alteration], batch: Batch) -> Tensor:
        self._passes += 1
        with Altering(self._owners, self._constants, alterations):
            return main_output(self._model(*batch.inputs))

    def _losses(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """Return the sum of the losses of a batch's samples, ``(variants,)``."""
        loss = self._probe.loss
        if loss is None or batch.targets is None:
            return None
        sums = []
        for output in outputs:
            targets = loss.prepare(output, batch.targets)
            sums.append(loss.per_sample(output, targets).double().sum())
        return torch.stack(sums).cpu()

    def _mean(self, losses: Sequence[Tensor | None], variant: int) -> float | None:
        known = [float(one[variant]) for one in losses if one is not None]
        return sum(known) / len(self._probe) if known else None


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
