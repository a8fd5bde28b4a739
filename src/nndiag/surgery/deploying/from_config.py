"""Networks that are built from a ``config.json``: which sizes it can say, and how it says them.

Most configurations have one width for all layers of a kind; some can name the attention heads that each layer lacks
(``pruned_heads``). What a changed configuration means is not guessed: the library builds the network from it, without
any numbers, and every shape has to be that of the smaller network.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor, nn

from nndiag.model.hf import without_numbers
from nndiag.surgery.deploying.tracing import Traced

Kept = Mapping[str, tuple[Tensor | None, ...]]
Config = dict[str, object]

UNEVEN = "the configuration has one width for all layers of its kind, and another of them keeps more"
_MOST_KEYS = 8
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def uneven(model: nn.Module, traced: Traced, kept: Kept) -> set[int]:
    """Return the classes that have to stay so that layers of a kind stay equally wide.

    Heads that a layer can be without, by the configuration, are left aside.

    Args:
        model: the network as it was.
        traced: its places.
        kept: what remains of the parameters that shrink.
    """
    free = heads_by_layer(model, traced)
    found: set[int] = set()
    kinds: dict[tuple[str, int, int], dict[str, set[int]]] = {}
    for name, axes in traced.places.axes.items():
        for number, axis in enumerate(axes):
            if axis is None:
                continue
            roots = traced.atoms.roots(axis)
            stays = kept[name][number] if name in kept else None
            gone = np.ones(len(roots), dtype=bool)
            gone[slice(None) if stays is None else stays.numpy()] = False
            lost = {int(root) for root in np.unique(roots[gone])} - free
            kinds.setdefault((_NUMBER.sub("#", name), number, len(roots)), {})[name] = lost
    for layers in kinds.values():
        least = min(map(len, layers.values()))
        for lost in layers.values():
            found |= set(sorted(lost)[least:])
    return found


def heads_by_layer(model: nn.Module, traced: Traced) -> set[int]:
    """Return the classes that are heads of modules whose library can leave single ones out."""
    if not hasattr(getattr(model, "config", None), "pruned_heads"):
        return set()
    found: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "pruned_heads", None), set):
            continue
        own = [name for name in traced.places.axes if name.startswith(f"{path}.")]
        roots = {
            int(root)
            for name in own
            for axis in traced.places.axes[name]
            if axis is not None
            for root in np.unique(traced.atoms.roots(axis))
        }
        for factor in traced.splits:
            classes = {int(root) for root in np.unique(traced.atoms.roots(factor))}
            found |= classes if classes <= roots else set()
    return found


def smaller_config(before: nn.Module, after: nn.Module, traced: Traced, kept: Kept) -> Config | None:
    """Return what changes in the configuration of a network that became smaller; ``None`` where it cannot be said.

    Args:
        before: the network as it was, with its ``config``.
        after: the smaller one.
        traced: the places of the first.
        kept: what remains of its parameters that shrank.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in after.state_dict().items()}
    heads = _pruned_heads(before, traced, kept)
    start: Config = {"pruned_heads": heads} if heads else {}
    for change in _candidates(before, kept):
        if _shapes_of(before, {**start, **change}) == shapes:
            return {**start, **change}
    return None


def _candidates(before: nn.Module, kept: Kept) -> Iterator[Config]:
    """Yield changes of numbers that are the old size of something: fewest first."""
    named, sizes = dict(before.state_dict()), dict[int, set[int]]()
    for name, axes in kept.items():
        for size, places in zip(named[name].shape, axes, strict=True) if name in named else ():
            if places is not None:
                sizes.setdefault(int(size), set()).add(len(places))
    options: list[tuple[str, int]] = []
    for key, value in before.config.to_dict().items():  # type: ignore[union-attr, operator]
        if type(value) is int:
            options += [(key, new) for new in sorted(sizes.get(value, ()))]
        elif value is None and re.search(r"inner|intermediate|ffn", key):
            options += [(key, new) for every in sizes.values() for new in sorted(every)]
    for count in range(min(len(options), _MOST_KEYS) + 1):
        for some in combinations(options, count):
            if len(dict(some)) == count:
                yield dict(some)


def _pruned_heads(before: nn.Module, traced: Traced, kept: Kept) -> dict[int, list[int]]:
    """Return, by the number of the layer, the heads that are gone, where the library can leave them out."""
    free, found = heads_by_layer(before, traced), dict[int, list[int]]()
    holders = [
        path
        for path, module in before.named_modules()
        if isinstance(getattr(module, "pruned_heads", None), set)
    ]
    for turn, path in enumerate(holders):
        for name in traced.places.axes:
            if not name.startswith(f"{path}.") or name not in kept:
                continue
            for axis, places in zip(traced.places.axes[name], kept[name], strict=True):
                if axis is not None and places is not None:
                    gone = _heads_gone(traced.atoms.roots(axis), places, free)
                    found[turn] = sorted({*found.get(turn, ()), *gone})
    return {turn: gone for turn, gone in found.items() if gone}


def _heads_gone(roots: np.ndarray, places: Tensor, free: Collection[int]) -> set[int]:
    """Return the numbers of the heads, in their order along an axis, whose places are gone."""
    order = list(dict.fromkeys(int(root) for root in roots if int(root) in free))
    stay = {int(root) for root in roots[places.numpy()]}
    return {number for number, root in enumerate(order) if root not in stay}


def _shapes_of(model: nn.Module, change: Config) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of the network that the library builds from a changed configuration."""
    config: Any = copy.deepcopy(model.config)
    try:
        for key, value in change.items():
            setattr(config, key, copy.deepcopy(value))
        made = without_numbers(config, lambda: type(model)(config))
        return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    except Exception:  # the library refuses the numbers together in any way it likes
        return None
