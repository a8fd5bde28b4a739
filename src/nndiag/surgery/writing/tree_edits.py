"""Edits of a model and its optimiser, made in the tree of a training checkpoint; all else in it stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from nndiag.checkpoint.source import damaged
from nndiag.errors import InputError
from nndiag.surgery.writing.changes import Changes
from nndiag.surgery.writing.inert import Made, mapping_of
from nndiag.surgery.writing.moments import Value, follow
from nndiag.surgery.writing.optimizers import OptimizerChange
from nndiag.surgery.writing.tensor_tree import Container, TensorTree, is_tensor

Entries = MutableMapping[Any, Any]
_DEPTH = 3


def edit_weights(tree: TensorTree, changes: Changes) -> None:
    """Put new weights where the old ones lie in a tree.

    Raises:
        InputError: they do not lie where they were found, or in modules whose shapes their own code decides.
    """
    entries = _find(tree.root, changes.place, changes.entries)
    if entries is None:
        _edit_modules(tree, changes)
        return
    for name, value in changes.weights.items():
        if name in entries:
            tree.put(entries, name, value)


def edit_optimizers(
    tree: TensorTree, changes: Changes, planned: Sequence[OptimizerChange]
) -> tuple[str, ...]:
    """Let the optimisers of a tree follow.

    Args:
        tree: the file.
        changes: what became of the parameters.
        planned: what becomes of the optimisers that lie in this file, in its order.

    Returns:
        Sentences for the user.
    """
    notes: list[str] = []
    for found, plan in zip(_optimizers(tree.root, _DEPTH, set()), planned, strict=True):
        if plan.fate == "emptied":
            mapping_of(found["state"]).clear()  # type: ignore[union-attr]
            tree.mark()
        elif plan.fate == "follows":
            notes += _follow(tree, found, changes, plan)
    return tuple(dict.fromkeys(notes))


def _follow(tree: TensorTree, found: Entries, changes: Changes, plan: OptimizerChange) -> Iterator[str]:
    state = mapping_of(found["state"])
    assert state is not None
    for name, change in changes.parameters.items():
        key = plan.keys.get(name)
        kept = mapping_of(state.get(key)) if key in state else None
        if kept is None:
            continue
        followed = follow(_values(tree, kept), change)
        if followed.changed is None:
            del state[key]
            tree.mark()
            yield f"the optimiser's state of {name} cannot be cut down and was left out: it starts afresh"
            continue
        for entry, value in followed.changed.items():
            if isinstance(value, Tensor):
                tree.put(kept, entry, value)
            else:
                kept[entry] = value
                tree.mark()
        for entry in sorted(followed.unknown):
            yield f"nobody knows a fresh start for the optimiser's {entry}: check it"


def _values(tree: TensorTree, kept: Entries) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in kept.items():
        if isinstance(value, Made) and is_tensor(value):
            found[name] = tree.tensor(value)
        elif isinstance(value, int | float):
            found[name] = value
    return found


def _find(root: object, key: str, entries: Sequence[str]) -> Entries | None:
    """Return the dict at a dotted key, in which names may hold dots themselves, that holds these entries."""
    here = mapping_of(root)
    if here is None:
        return None
    if not key:
        return here if all(is_tensor(here.get(name)) for name in entries) else None
    for name, value in here.items():
        if name == key or (isinstance(name, str) and key.startswith(f"{name}.")):
            found = _find(value, key[len(name) + 1 :], entries)
            if found is not None:
                return found
    return None


def _edit_modules(tree: TensorTree, changes: Changes) -> None:
    """Put new weights into the parameters and buffers of a pickled module."""
    held = dict(_in_module(_module_at(tree.root, changes.place), ""))
    if set(changes.entries) - held.keys():
        raise damaged(tree.path, "its weights do not lie where they were found")
    if changes.shrank:
        raise _refused(tree)
    for name, value in changes.weights.items():
        tree.put(*held[name], value)


def _refused(tree: TensorTree) -> InputError:
    return InputError(
        tree.path, "holds a pickled module, whose code decides its shapes, so that it cannot be made smaller",
        "save model.state_dict() and heal that",
    )  # fmt: skip


def _module_at(root: object, key: str) -> object:
    for name in filter(None, key.split(".")):
        entries = mapping_of(root)
        root = entries.get(name) if entries is not None else None
    return root


def _in_module(module: object, prefix: str) -> Iterator[tuple[str, tuple[Container, str]]]:
    """Yield the tensors of a module by their names in its state dict, with where they lie."""
    state = mapping_of(module.states[-1]) if isinstance(module, Made) and module.states else None
    if state is None:
        return
    for part in ("_parameters", "_buffers"):
        entries = mapping_of(state.get(part))
        for name, value in (entries or {}).items():
            if entries is not None and is_tensor(value):
                yield prefix + name, (entries, name)
    for name, inside in (mapping_of(state.get("_modules")) or {}).items():
        yield from _in_module(inside, f"{prefix}{name}.")


def _optimizers(value: object, depth: int, seen: set[int]) -> Iterator[Entries]:
    """Yield the state dicts of optimisers in the order in which the checkpoint's reader finds them."""
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    entries = mapping_of(value)
    if entries is not None and _is_optimizer(entries):
        yield entries
        return
    children = list(value) if isinstance(value, list) else []
    if entries is not None:
        children = [part for name, part in entries.items() if isinstance(name, str)]
    for part in children:
        if isinstance(part, list) or mapping_of(part) is not None:
            yield from _optimizers(part, depth - 1, seen)


def _is_optimizer(entries: Entries) -> bool:
    return mapping_of(entries.get("state")) is not None and isinstance(entries.get("param_groups"), list)
