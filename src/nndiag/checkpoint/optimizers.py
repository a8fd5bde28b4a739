"""Optimiser state inside a file, and in the file beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.plain import LEFT_OUT, entries, named_entries, plain_number, plain_tensor, plain_value
from nndiag.checkpoint.record import SavedOptimizer

_DEPTH = 3


def is_optimizer(tree: object) -> bool:
    """Return whether a loaded value has the two entries of every torch optimiser's state dict."""
    if not isinstance(tree, dict):
        return False
    return isinstance(dict.get(tree, "state"), dict) and isinstance(dict.get(tree, "param_groups"), list)


def find_optimizers(path: Path, tree: object) -> tuple[SavedOptimizer, ...]:
    """Return every optimiser state in a loaded file, in file order.

    Args:
        path: the file's name.
        tree: what the file holds.

    Raises:
        InputError: a tensor of the state is not dense.
    """
    return tuple(_walk(path, tree, "", _DEPTH, set()))


def sibling_of(path: Path) -> Path:
    """Return where Stable-Baselines3 keeps the optimiser of ``policy.pth``: ``policy.optimizer.pth``."""
    return path.parent / f"{path.stem}.optimizer{path.suffix}"


def _walk(path: Path, tree: object, key: str, depth: int, seen: set[int]) -> Iterator[SavedOptimizer]:
    if id(tree) in seen or depth < 0:
        return
    seen.add(id(tree))
    if is_optimizer(tree):
        yield _optimizer(path, tree, key)
        return
    # none of these is written down: a file may hold a list of millions of numbers
    children: Iterable[tuple[object, object]] = (
        enumerate(tree) if isinstance(tree, list) else named_entries(tree)
    )
    for name, child in children:
        if isinstance(child, (dict, list)):
            yield from _walk(path, child, f"{key}.{name}" if key else str(name), depth - 1, seen)


def _optimizer(path: Path, tree: object, key: str) -> SavedOptimizer:
    parts = dict(named_entries(tree))
    groups = parts["param_groups"]
    assert isinstance(groups, list)
    state = {
        parameter: _parameter_state(path, values)
        for parameter, values in entries(parts["state"])
        if isinstance(parameter, (int, str))
    }
    return SavedOptimizer(key, tuple(_group(group) for group in groups if isinstance(group, dict)), state)


def _group(group: object) -> Mapping[str, object]:
    plain = ((name, plain_value(value)) for name, value in named_entries(group))
    return {name: value for name, value in plain if value is not LEFT_OUT}


def _parameter_state(path: Path, values: object) -> dict[str, object]:
    """Keep tensors and numbers; a step counter in a tensor becomes a number."""
    kept: dict[str, object] = {}
    for name, value in named_entries(values):
        number = plain_number(value)
        if number is not None:
            kept[name] = number
        elif isinstance(value, Tensor):
            kept[name] = plain_tensor(path, name, value)
    return kept
