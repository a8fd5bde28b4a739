"""Finding the samples: which rows of a layer's output belong to which, and whether they see each other at all.

Every per-sample formula rests on it. A layer whose first axis is not the sample (sequence-first recurrences and
transformers, flattened batches) or a model that mixes its batch (batch statistics in eval mode) would give wrong
curvature without any error. Two small backward passes tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nndiag.replay.jacobians import SamplesMixedError, dependence, sample_jacobians
from nndiag.replay.kinds import Layer, Samples, Share
from nndiag.replay.layers import Owners
from nndiag.replay.nonlinearity import Nonlinearity
from nndiag.replay.passes import Forward, forward
from nndiag.replay.watch import Call

FIRST, MORE = 3, 17
"""So many samples of a probe are looked at; more where they do not tell. Few axes of a model have 17 entries."""


UNLIKE = "its gradients for a sample alone are not those for the sample in a batch"


class Blind:
    """An observer that looks at nothing."""

    def produced(self, layer: Layer, z: Tensor) -> object:
        """Nothing."""

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> object:
        """Nothing."""


@dataclass(frozen=True)
class Separation:
    """Where the samples are in the output of each call of a layer, by the layer's name.

    ``alone`` names the layers that need samples run one by one: with parameters in functions that no kind knows, or an
    output that samples share (positions, looked up once for all). ``left_out`` gives the reason for those for which
    that would be wrong, because samples influence each other. ``seen`` is the forward pass that showed it.
    """

    samples: Mapping[str, Sequence[Samples]]
    alone: frozenset[str]
    left_out: Mapping[str, str]
    seen: Forward


def separation(
    model: nn.Module,
    inputs: Sequence[Tensor],
    owners: Owners,
    generator: torch.Generator,
    most: int = 256,
    one_by_one: Set[str] = frozenset(),
) -> Separation:
    """Look at the first samples of a probe.

    The output of the first alone is sent back, that of the last, and those of the others; the rows of a layer's output
    that they reach must be theirs in some regular order. Where more than one order agrees, as for a layer that the
    samples do not reach, more samples are looked at. What a layer's gradients at its outputs say of its parameters is
    compared with their gradients, so that no use of them escapes.

    Args:
        model: the model, in eval mode.
        inputs: probe inputs; the first three samples are used, where they show enough.
        owners: the layer and slot of every parameter.
        generator: source of the seeds of the backward passes.
        most: samples that may be run at once.
        one_by_one: layers that are known to need samples run one by one.
    """
    for count in sorted({min(len(inputs[0]), count) for count in (FIRST, MORE, max(MORE, most))}):
        look = _Look(model, [x[:count] for x in inputs], owners, generator)
        if not look.undecided:
            break
    alone = look.alone | look.undecided | look.disagreeing() | one_by_one
    left_out = look.left_out(model, [one for one in look.layers if one.name in alone]) if alone else {}
    return Separation(look.found, frozenset(alone - left_out.keys()), left_out, look.seen)


def strays(seen: Forward, samples: Mapping[str, Sequence[Samples]]) -> set[str]:
    """Return the layers whose samples are not where the first samples of the probe were, or not known to be.

    Args:
        seen: a pass over some batch.
        samples: where the samples of the first were in every call of a layer.
    """
    found, turns = set(), Counter[str]()
    for call in seen.calls:
        if call.use is None:
            continue
        name = call.layer.name
        known, turn = samples.get(name, ()), turns[name]
        turns[name] += 1
        if call.picked or (turn >= len(known) and len(set(known)) != 1):
            found.add(name)
            continue
        order = known[min(turn, len(known) - 1)]
        rows = math.prod(call.use.kind.leading(call.use, call.shape))
        if order.before * order.after * len(seen.output) != rows:
            found.add(name)
    return found


class _Look:
    """Some samples, and what passes back from the first, the last, the others and all of them reach.

    ``found`` are the orders of samples in the calls of each layer, ``alone`` the layers that have none in some call,
    ``undecided`` those in whose calls several agree.
    """

    def __init__(
        self, model: nn.Module, inputs: Sequence[Tensor], owners: Owners, generator: torch.Generator
    ) -> None:
        self.inputs = inputs
        self.seen = forward(model, inputs, owners, Blind())
        self.found: dict[str, list[Samples]] = {}
        self.alone = set(self.seen.watch.used_elsewhere)
        self.undecided: set[str] = set()
        self.layers = tuple({layer.name: layer for layer, _ in owners.values()}.values())
        count = len(inputs[0])
        self._seed = torch.randn(self.seen.output.shape, generator=generator).to(self.seen.output)
        reached = []
        for rows in (slice(0, 1), slice(count - 1, count), slice(1, count - 1)):
            seed = torch.zeros_like(self._seed)
            seed[rows] = self._seed[rows]
            reached.append(self.seen.gradients(seed))
        for call, *gradients in zip(self.seen.calls, *reached, strict=True):
            if call.use is not None:
                self._place(call, count, gradients)
        named = {n: p for n, p in model.named_parameters(remove_duplicate=False) if id(p) in owners}
        self._at_outputs, at_parameters = self.seen.gradients_and_parameters(self._seed, list(named.values()))
        self._at_parameters = {
            name: torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g).detach()
            for (name, p), g in zip(named.items(), at_parameters, strict=True)
        }
        self._norms = {name: float(gradient.norm()) for name, gradient in self._at_parameters.items()}

    def _place(self, call: Call, count: int, reached: Sequence[Tensor]) -> None:
        orders = [] if call.picked else _orders(call, count, reached)
        name = call.layer.name
        if not orders:
            self.alone.add(name)
            return
        self.found.setdefault(name, []).append(orders[0])
        if len(orders) > 1 and count > 1 and not call.cut_off:
            self.undecided.add(name)

    def disagreeing(self) -> set[str]:
        """Return the layers whose calls do not account for the gradients of their parameters."""
        calls: dict[str, list[int]] = {}
        for place, call in enumerate(self.seen.calls):
            if call.use is not None and call.layer.name not in self.alone:
                calls.setdefault(call.layer.name, []).append(place)
        return {name for name, places in calls.items() if not self._agrees(places)}

    def _agrees(self, places: Sequence[int]) -> bool:
        layer, made, rounding = self.seen.calls[places[0]].layer, None, 0.0
        for place in places:
            call = self.seen.calls[place]
            assert call.use is not None
            share = Share((call.use,), (place,))
            own = share.kind.pull_back(share, share.kind.gather(share, self._at_outputs))
            rounding = max(rounding, call.rounding)
            if made is None and share.complete:
                made = own
                continue
            made = own.new_zeros(layer.nodes, layer.size) if made is None else made
            share.add_to(made, own)
        assert made is not None
        return self._equal(layer, made, rounding)

    def left_out(self, model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
        """Say why samples of layers cannot be run one by one, by layer."""
        reason = dependence(model, self.inputs, self.seen.output)
        if reason is not None:
            return {layer.name: reason for layer in layers}
        sums: dict[str, Tensor] = {}
        try:
            for _, rows in sample_jacobians(model, layers, self.inputs, self.seen.output, self._seed[None]):
                for name, own in rows.items():
                    sums[name] = sums.get(name, torch.zeros_like(own[0, 0])) + own[0].sum(dim=0)
        except SamplesMixedError as error:
            return {layer.name: str(error) for layer in layers}
        rounding = max([torch.finfo(self._seed.dtype).eps, *(call.rounding for call in self.seen.calls)])
        return {layer.name: UNLIKE for layer in layers if not self._equal(layer, sums[layer.name], rounding)}

    def _equal(self, layer: Layer, made: Tensor, rounding: float) -> bool:
        """Whether what was made for the gradient of a layer is it, but for rounding.

        A gradient that is rounding alone, such as that of a shift before a normalisation, is small beside those of
        other layers. Gradients that are not finite are not compared.
        """
        accepted = rounding ** (1 / 3) * max(self._norms[name] for name in layer.names)
        accepted += rounding ** (2 / 3) * max(self._norms.values())
        for slot in layer.slots:
            made[:, layer.place(slot)].sub_(slot.rows(self._at_parameters[slot.parameter]))
        return not float(made.norm()) > accepted


def _orders(call: Call, count: int, reached: Sequence[Tensor]) -> list[Samples]:
    """Return the orders of samples that agree with the rows reached from the first, the last and all other samples."""
    assert call.use is not None
    first, last, others = ((call.use.kind.spread(call.use, g) != 0).flatten(1).any(dim=1) for g in reached)
    rows = torch.arange(len(first), device=first.device)
    leading = call.use.kind.leading(call.use, call.shape)
    found: list[Samples] = []
    for after in _strides(leading, count):
        owner = rows // after % count
        order = Samples(len(rows) // (after * count), after)
        is_first, is_last = owner == 0, owner == count - 1
        strayed = (first & ~is_first) | (last & ~is_last) | (others & (is_first | is_last))
        if not bool(strayed.any()) and order not in found:
            found.append(order)
    return found


def _strides(leading: Sequence[int], count: int) -> Iterator[int]:
    """Yield how many rows of one sample may follow each other: samples first, then along every other axis."""
    for axis, size in enumerate(leading):
        if size == count:
            yield math.prod(leading[axis + 1 :])
    for axis, size in enumerate(leading):
        if size % count == 0 and size > count:  # samples flattened together with positions, either way round
            inside = math.prod(leading[axis + 1 :])
            yield inside * (size // count)
            yield inside
