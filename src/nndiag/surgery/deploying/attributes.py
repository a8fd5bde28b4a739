"""The numbers in which modules keep their own sizes: what they are after parameters have shrunk.

Torch's own modules and the ``Conv1D`` of transformers are known; modules of other code may keep widths and counts of
heads under names of their own, which are found by their value and proved by running the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Numbers = Mapping[str, int]
Kept = Mapping[str, tuple[Tensor | None, ...]]

_COUNT = re.compile(r"heads?$")
"""Names that count heads; what is called a size or a width is none of them, also where the numbers are equal."""
_WIDTH = re.compile(r"dim|size|width|features|channels")


def adjust(
    before: nn.Module,
    after: nn.Module,
    kept: Kept,
    heads: Mapping[str, Sequence[tuple[int, int]]],
) -> None:
    """Set the numbers of modules whose parameters have shrunk, and of those that hold such modules.

    Args:
        before: the network as it was.
        after: its copy, with the new parameters in place.
        kept: what remains of the parameters that shrank.
        heads: by the path of the modules of other code whose numbers change too, how many heads there were and remain.
    """
    for path in sorted({name.rpartition(".")[0] for name in kept}):
        module = after.get_submodule(path)
        for name, value in sizes_of(before.get_submodule(path), module).items():
            setattr(module, name, value)
    for path, counts in heads.items():
        module = after.get_submodule(path)
        sizes, fewer = _sizes(before, path, kept), _one_each(counts)
        for name, value in _numbers(before.get_submodule(path)):
            new = fewer.get(value) if _COUNT.search(name) else sizes.get(value)
            if new is None and not _WIDTH.search(name):
                new = fewer.get(value)
            if new is not None:
                setattr(module, name, new)


def parents_of(names: Collection[str]) -> set[str]:
    """Return the paths of the modules that hold the modules of these parameters."""
    return {name.rpartition(".")[0].rpartition(".")[0] for name in names}


def sizes_of(before: nn.Module, after: nn.Module) -> Numbers:
    """Return the numbers of a module whose parameters have new shapes already, as far as its kind is known."""
    for kind, read in _KINDS:
        if isinstance(before, kind):
            return read(before, after)
    if type(before).__name__ == "Conv1D" and hasattr(before, "nf"):
        wide, narrow = _shape(after)
        return {"nf": narrow, **({"nx": wide} if hasattr(before, "nx") else {})}
    return {}


def _shape(module: nn.Module, name: str = "weight") -> tuple[int, ...]:
    return tuple(getattr(module, name).shape)


def _linear(before: nn.Module, after: nn.Module) -> Numbers:
    outputs, inputs = _shape(after)
    return {"out_features": outputs, "in_features": inputs}


def _convolution(before: nn.Module, after: nn.Module) -> Numbers:
    assert isinstance(before, _ConvNd)
    assert isinstance(after, _ConvNd)
    first, second = after.weight.shape[:2]
    if isinstance(before, _ConvTransposeNd):
        return {"in_channels": first, "out_channels": second * before.groups}
    groups = before.groups * first // before.out_channels if before.groups > 1 else 1
    return {"out_channels": first, "in_channels": second * groups, "groups": groups}


def _channels(before: nn.Module, after: nn.Module) -> Numbers:
    name = "weight" if before.weight is not None else "running_mean"
    return {"num_features": _shape(after, name)[0]} if getattr(before, name) is not None else {}


def _grouped_norm(before: nn.Module, after: nn.Module) -> Numbers:
    assert isinstance(before, nn.GroupNorm)
    assert isinstance(after, nn.GroupNorm)
    channels = len(after.weight)
    return {"num_channels": channels, "num_groups": before.num_groups * channels // before.num_channels}


def _recurrent(before: nn.Module, after: nn.Module) -> Numbers:
    names = ("weight_ih_l0", "weight_hh_l0") if isinstance(before, nn.RNNBase) else ("weight_ih", "weight_hh")
    inputs, hidden = (int(getattr(after, name).shape[1]) for name in names)
    return {"input_size": inputs, "hidden_size": hidden}


def _table(before: nn.Module, after: nn.Module) -> Numbers:
    rows, width = _shape(after)
    return {"num_embeddings": rows, "embedding_dim": width}


def _slopes(before: nn.Module, after: nn.Module) -> Numbers:
    return {"num_parameters": _shape(after)[0]}


_KINDS: Sequence[tuple[type | tuple[type, ...], Callable[[nn.Module, nn.Module], Numbers]]] = (
    (nn.Linear, _linear),
    (_ConvNd, _convolution),
    (_NormBase, _channels),
    (nn.GroupNorm, _grouped_norm),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    ((nn.Embedding, nn.EmbeddingBag), _table),
    (nn.PReLU, _slopes),
)


def _sizes(before: nn.Module, path: str, kept: Kept) -> dict[int, int]:
    """Return what became of the sizes of the parameters under a module, where that is one thing."""
    named = dict(before.named_parameters(remove_duplicate=False))
    ahead = f"{path}." if path else ""
    return _one_each(
        (int(size), len(places))
        for name, axes in kept.items()
        if name.startswith(ahead) and name in named
        for size, places in zip(named[name].shape, axes, strict=True)
        if places is not None
    )


def _one_each(changes: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return new numbers by the old ones, without those that became several."""
    found: dict[int, set[int]] = {}
    for old, new in changes:
        found.setdefault(old, set()).add(new)
    return {old: new.pop() for old, new in found.items() if len(new) == 1 and old > 1}


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers that a module of other code than torch's keeps."""
    if type(module).__module__.partition(".")[0] == "torch":
        return
    for name, value in vars(module).items():
        if type(value) is int and not name.startswith("_"):
            yield name, value
