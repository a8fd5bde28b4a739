"""Where units of several layers lie along one axis of a tensor, and where they lie after a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nndiag.replay.nonlinearity import recognise
from nndiag.replay.units import AFFINE, KEEP_SHAPE, POOLS, QUOTIENTS, RESHAPES, Units, moved

_MIX = frozenset(["group_norm", "layer_norm", "rms_norm"])
_EACH = frozenset("square pow sqrt rsqrt exp log1p sign erf sin cos where masked_fill".split())
_REDUCE = frozenset("mean sum amax amin".split())
_RESIZE = frozenset("pad interpolate upsample".split())
PRODUCTS = frozenset("mul multiply __mul__ __rmul__ __imul__".split())
JOINS = frozenset("cat concat concatenate".split())
_TURNS = frozenset("permute transpose swapaxes swapdims movedim moveaxis t mT".split())


@dataclass(frozen=True)
class Strand:
    """The units of one layer: entries from ``start`` on, ``inner`` a unit.

    ``activated`` says that an activation has acted on them.
    """

    layer: str
    units: int
    start: int = 0
    inner: int = 1
    activated: bool = False


@dataclass(frozen=True)
class Bundle:
    """The strands along ``axis`` of a tensor, which has ``length`` entries there."""

    axis: int
    length: int
    strands: tuple[Strand, ...]

    def activated(self) -> Bundle:
        """Return the same after an activation."""
        return replace(self, strands=tuple(replace(strand, activated=True) for strand in self.strands))

    def at(self, axis: int, inner: int) -> Bundle:
        """Return the same where every entry has become ``inner`` ones in a row along another axis."""
        strands = tuple(replace(s, start=s.start * inner, inner=s.inner * inner) for s in self.strands)
        return Bundle(axis, self.length * inner, strands)


def joined(bundles: Sequence[tuple[Tensor, Bundle | None]], axis: int) -> Bundle | None:
    """Return what lies along the axis along which tensors are put one after the other; ``None`` where it is another."""
    strands: list[Strand] = []
    start = 0
    for tensor, bundle in bundles:
        if bundle is not None:
            if bundle.axis != axis:
                return None
            strands += [replace(strand, start=strand.start + start) for strand in bundle.strands]
        start += tensor.shape[axis]
    return Bundle(axis, start, tuple(strands))


def followed(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor, bundle: Bundle, result: Tensor,
    constant: bool,
) -> Bundle | None:  # fmt: skip
    """Return where the strands of a tensor are after a function that works on each unit by itself, else ``None``.

    Args:
        name: the function.
        args: its arguments.
        kwargs: its arguments by name.
        tensor: the one of them that holds the strands.
        bundle: the strands.
        result: what it returned.
        constant: whether all other tensors among the arguments are the same for every sample.
    """
    before, after = tuple(tensor.shape), tuple(result.shape)
    first = bool(args) and args[0] is tensor
    if first and before == after and recognise(name, args, kwargs) is not None:
        return bundle.activated()
    if name in AFFINE or name in QUOTIENTS or name in _EACH:
        apart = constant or name in PRODUCTS or (name in QUOTIENTS and first)
        return bundle if apart and before == after else None
    if not first or name in _MIX:
        return None
    if name in _REDUCE:
        return _reduced(bundle, before, after, args[1:], kwargs)
    if name in _RESIZE:
        same = len(before) == len(after) and before[bundle.axis] == after[bundle.axis]
        return bundle if same else None
    if name == "__getitem__":
        return _indexed(bundle, args[1])
    if name in KEEP_SHAPE or name in POOLS or name in RESHAPES or name in _TURNS:
        place = moved(name, Units(bundle.axis, bundle.length), before, after, args, kwargs)
        return None if place is None else bundle.at(place.axis, place.inner)
    return None


def _reduced(
    bundle: Bundle,
    before: Sequence[int],
    after: Sequence[int],
    rest: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Bundle | None:
    """Follow a mean or the like over other axes than that of the units."""
    given = kwargs.get("dim", rest[0] if rest else None)
    if given is None or isinstance(given, Tensor):
        return None
    axes = {int(axis) % len(before) for axis in (given if isinstance(given, list | tuple) else [given])}
    if bundle.axis in axes:
        return None
    if len(after) == len(before):
        return bundle
    return replace(bundle, axis=bundle.axis - sum(axis < bundle.axis for axis in axes))


def _indexed(bundle: Bundle, index: Any) -> Bundle | None:
    """Follow an index that takes numbers and slices of axes before that of the units."""
    parts = index if isinstance(index, tuple) else (index,)
    taken = parts[: bundle.axis]
    rest = parts[bundle.axis :]
    if not all(isinstance(part, int | slice) for part in taken):
        return None
    if not all(isinstance(part, slice) and part == slice(None) for part in rest[:1]):
        return None
    if not all(isinstance(part, int | slice) for part in rest[1:]):
        return None
    return replace(bundle, axis=bundle.axis - sum(isinstance(part, int) for part in taken))
