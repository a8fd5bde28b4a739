"""One batch as a layer saw it: the uses of its parameters, and gradients at their outputs, over all calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nndiag.replay.jacobian import Part
from nndiag.replay.kinds import Layer, Samples, Share, Slot
from nndiag.replay.passes import Forward


@dataclass(frozen=True)
class LayerUse:
    """The calls of one layer in one forward pass, those that use the same parameters together."""

    layer: Layer
    shares: tuple[Share, ...]

    @property
    def calls(self) -> int:
        """How often its parameters are used."""
        return sum(len(share.uses) for share in self.shares)

    def inputs(self) -> list[Tensor]:
        """Return the inputs of every share, as its kind holds them."""
        return [share.kind.inputs(share).detach() for share in self.shares]

    def gather(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Pick the layer's own gradients from those of all calls, as the kinds hold them."""
        return [share.kind.gather(share, gradients) for share in self.shares]

    def parts(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Part]:
        """Put shares, inputs and gradients together."""
        return list(zip(self.shares, inputs, gradients, strict=True))


def layer_uses(
    seen: Forward, samples: Mapping[str, Sequence[Samples]], leave_out: Collection[str]
) -> list[LayerUse]:
    """Return the layers called in a forward pass, in order of their first call.

    Args:
        seen: the pass.
        samples: where the samples are in every call of a layer, by its name; first where nothing is said.
        leave_out: names of layers to leave out.
    """
    grouped: dict[str, dict[tuple[object, Slot, Slot | None], Share]] = {}
    layers: dict[str, Layer] = {}
    counts: dict[str, int] = {}
    for place, call in enumerate(seen.calls):
        use, name = call.use, call.layer.name
        if use is None or name in leave_out:
            continue
        layers[name] = call.layer
        known, turn = samples.get(name, ()), counts.get(name, 0)
        counts[name] = turn + 1
        if known:
            use = use.with_samples(known[min(turn, len(known) - 1)])
        shares = grouped.setdefault(name, {})
        key = (use.kind, use.weight, use.bias)
        before = shares.get(key)
        shares[key] = (
            Share((use,), (place,)) if before is None else Share((*before.uses, use), (*before.places, place))
        )
    return [LayerUse(layers[name], tuple(shares.values())) for name, shares in grouped.items()]
