"""Optimiser state in a distributed checkpoint: by parameter names, nested or flattened into single entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from nndiag.checkpoint.dcp_metadata import Chunk
from nndiag.checkpoint.lazy import LazyTensors
from nndiag.checkpoint.plain import LEFT_OUT, plain_number, plain_value
from nndiag.checkpoint.record import SavedOptimizer
from nndiag.errors import InputError

Keys = tuple[str | int, ...]
_STATE, _GROUPS, _MEMBERS = "state", "param_groups", ".params"


class LazyState(Mapping[str, object]):
    """What is kept for one parameter: numbers at hand, tensors read when asked for."""

    def __init__(self, tensors: LazyTensors, names: Mapping[str, str], numbers: Mapping[str, object]) -> None:
        self._tensors, self._names, self._numbers = tensors, names, numbers

    def __getitem__(self, key: str) -> object:
        return self._numbers[key] if key in self._numbers else self._tensors[self._names[key]]

    def __contains__(self, key: object) -> bool:
        return key in self._numbers or key in self._names

    def __iter__(self) -> Iterator[str]:
        yield from self._numbers
        yield from self._names

    def __len__(self) -> int:
        return len(self._numbers) + len(self._names)


def is_of_optimizer(path: Keys) -> bool:
    """Return whether an entry belongs to an optimiser: something on the way to it is called so."""
    return split_path(path) is not None


def read_optimizers(
    tensors: LazyTensors,
    values: Mapping[str, Chunk],
    paths: Mapping[str, Keys],
    read: Callable[[Chunk], object],
) -> tuple[SavedOptimizer, ...]:
    """Return every optimiser, its state by the names (or numbers) that parameters have there.

    Args:
        tensors: all tensors of the checkpoint.
        values: what is no tensor.
        paths: the keys that every flat name was made of.
        read: returns the value in some bytes.
    """
    entries: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, path in paths.items():
        split = split_path(path)
        if split is not None:
            entries[split[0]][split[1]] = name
    found = (_optimizer(key, names, tensors, values, read) for key, names in entries.items())
    return tuple(saved for saved in found if saved.groups or saved.state)


def split_path(path: Keys) -> tuple[str, str] | None:
    """Return the place of the optimiser and the way inside it, ``"optim", "state.0.weight.exp_avg"``; else ``None``."""
    for place, key in enumerate(path):
        head, _, tail = str(key).partition(".")
        if head.lower().startswith("optim"):
            inside = ([tail] if tail else []) + [str(part) for part in path[place + 1 :]]
            return ".".join([*map(str, path[:place]), head]), ".".join(inside)
    return None


def _optimizer(
    key: str,
    names: Mapping[str, str],
    tensors: LazyTensors,
    values: Mapping[str, Chunk],
    read: Callable[[Chunk], object],
) -> SavedOptimizer:
    moments: defaultdict[str, dict[str, str]] = defaultdict(dict)
    numbers: defaultdict[str, dict[str, object]] = defaultdict(dict)
    options: defaultdict[str, dict[str, object]] = defaultdict(dict)
    groups: list[Mapping[str, object]] = []

    def value(name: str) -> object:
        if name in tensors:
            return plain_number(tensors[name])
        try:
            return plain_value(read(values[name]))
        except InputError:
            return LEFT_OUT  # an option of some class of its own; the others still count

    for inside, name in names.items():
        part, _, rest = inside.partition(".")
        owner, _, last = rest.rpartition(".")
        if part == _STATE and owner and name in tensors and tensors.specs[name].dim():
            moments[owner][last] = name
        elif part == _STATE and owner:
            numbers[owner][last] = value(name)
        elif inside == _GROUPS:
            whole = value(name)
            groups += (
                [group for group in whole if isinstance(group, dict)] if isinstance(whole, tuple) else []
            )
        elif part == _GROUPS and owner:
            options[owner][last] = value(name)
    state = {
        owner: LazyState(tensors, moments[owner], numbers[owner])
        for owner in dict.fromkeys([*moments, *numbers])
    }
    return SavedOptimizer(
        key, (*groups, *_groups(options)), {key_of(owner): kept for owner, kept in state.items()}
    )


def _groups(options: Mapping[str, Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Return parameter groups from options that are kept for every parameter (or group) by itself."""
    by_options: dict[str, dict[str, object]] = {}
    members: defaultdict[str, list[str]] = defaultdict(list)
    for owner, known in options.items():
        if owner.endswith(_MEMBERS):
            continue
        plain = {name: value for name, value in known.items() if value is not LEFT_OUT and name != "params"}
        text = repr(sorted(plain.items(), key=lambda pair: pair[0]))
        by_options[text] = plain
        listed = options.get(owner + _MEMBERS, {}).values() or known.get("params")
        members[text] += [str(name) for name in listed] if isinstance(listed, Iterable) else [owner]
    return [{**plain, "params": tuple(members[text])} for text, plain in by_options.items()]


def key_of(owner: str) -> int | str:
    """Return a parameter's number, where parameters are numbered."""
    return int(owner) if owner.isdecimal() and len(owner) < 19 else owner
