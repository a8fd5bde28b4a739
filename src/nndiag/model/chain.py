"""From names and shapes of weights to the chain of layers that they suggest.

Weights show which layers hold numbers, in which order and of which width. What lies between them leaves none:
activations are guessed, and said to be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nndiag.checkpoint.lazy import specs_of
from nndiag.model.candidates import PlaceLike

ACTIVATION = "ReLU"
_NAME = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?P<place>0|[1-9]\d{0,3})"
    r"\.(?P<kind>weight|bias|running_mean|running_var|num_batches_tracked)"
)
MOST = 200
"""Layers of a chain that is offered."""


@dataclass(frozen=True)
class Chain:
    """Layers for ``sequential`` in ``nndiag.toml``.

    ``layers`` holds name and sizes of each, ``guessed`` the positions of those that no weight shows. ``place`` and
    ``prefix`` say where the weights lie; ``inputs`` and ``outputs`` are the widths of a sample and of what is put out.
    """

    layers: tuple[tuple[object, ...], ...]
    guessed: frozenset[int]
    place: str
    prefix: str
    inputs: int
    outputs: int

    @property
    def widths(self) -> str:
        """The widths along the chain, ``"20→64→3"``."""
        linear = [layer for layer in self.layers if layer[0] == "Linear"]
        return "→".join(str(width) for width in (self.inputs, *(layer[2] for layer in linear)))


def find_chains(place: PlaceLike) -> tuple[Chain, ...]:
    """Return every chain of linear layers, with batch normalisation between them or not, under some prefix of a place:
    one where the weights are those of a plain ``nn.Sequential``, more where several networks lie in one file.
    """
    by_prefix: dict[str, dict[int, dict[str, Tensor]]] = {}
    specs = specs_of(place.tensors)
    for name in place.tensors:
        match = _NAME.fullmatch(name)
        if match is None or not f"{place.key}{match['prefix']}".isprintable():
            continue
        found = by_prefix.setdefault(match["prefix"], {})
        if len(found) <= MOST:
            found.setdefault(int(match["place"]), {})[match["kind"]] = specs[name]
    chains = (_chain(place.key, prefix, layers) for prefix, layers in by_prefix.items())
    return tuple(chain for chain in chains if chain is not None and _alone(chain, place))


def _alone(chain: Chain, place: PlaceLike) -> bool:
    """Whether nothing else lies under the prefix of a chain."""
    below = [name for name in place.tensors if name.startswith(chain.prefix)]
    return all((match := _NAME.fullmatch(name)) and match["prefix"] == chain.prefix for name in below)


def _chain(key: str, prefix: str, held: Mapping[int, Mapping[str, Tensor]]) -> Chain | None:
    """Return the chain that numbered layers make, or ``None`` where their shapes do not follow each other."""
    if not held or len(held) > MOST or max(held) > 2 * MOST:
        return None
    layers: list[tuple[object, ...]] = []
    guessed: set[int] = set()
    width: int | None = None
    first: int | None = None
    for place in sorted(held):
        made = _layer(held[place], width)
        if made is None:
            return None
        _fill(layers, guessed, place, after_layer=width is not None)
        layers.append(made)
        if made[0] == "Linear":
            assert isinstance(made[2], int)
            first = held[place]["weight"].shape[1] if first is None else first
            width = made[2]
    if first is None or width is None:
        return None
    return Chain(tuple(layers), frozenset(guessed), key, prefix, first, width)


def _layer(tensors: Mapping[str, Tensor], width: int | None) -> tuple[object, ...] | None:
    """Return one layer from its tensors; it takes ``width`` numbers, where that is known."""
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or not weight.is_floating_point() or 0 in weight.shape:
        return None
    if bias is not None and tuple(bias.shape) != tuple(weight.shape[:1]):
        return None
    if weight.dim() == 2 and "running_mean" not in tensors and width in (None, weight.shape[1]):
        sizes = ("Linear", int(weight.shape[1]), int(weight.shape[0]))
        return sizes if bias is not None else (*sizes, {"bias": False})
    if weight.dim() == 1 and width == weight.shape[0] and bias is not None:
        kind = "BatchNorm1d" if "running_mean" in tensors else "LayerNorm"
        return (kind, int(weight.shape[0]))
    return None


def _fill(layers: list[tuple[object, ...]], guessed: set[int], place: int, *, after_layer: bool) -> None:
    """Fill the positions up to a layer: those before the first flatten, the next one acts, the others do nothing."""
    gap = place - len(layers)
    for turn in range(gap):
        guessed.add(len(layers))
        usual = ACTIVATION if after_layer else "Flatten"
        layers.append((usual if turn == 0 else "Identity",))
