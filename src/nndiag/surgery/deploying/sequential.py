"""A ``sequential`` list of ``nndiag.toml`` for a network that has become smaller."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from torch import nn

from nndiag.config.toml_text import toml_value
from nndiag.model.sequential import LAYERS
from nndiag.surgery.deploying.attributes import sizes_of


def smaller_sequential(entries: Sequence[Sequence[object]], model: nn.Sequential) -> list[list[object]]:
    """Return the list of layers with the sizes of a smaller network.

    Args:
        entries: the list of the network as it was, ``[["Linear", 64, 128], ["ReLU"], …]``.
        model: the network as it is now, a module for each entry.
    """
    return [_entry(list(entry), module) for entry, module in zip(entries, model, strict=True)]


def _entry(entry: list[object], module: nn.Module) -> list[object]:
    name, *given = entry
    last = given[-1] if given else None
    keywords = dict(last) if isinstance(last, Mapping) else {}
    given = given[:-1] if isinstance(last, Mapping) else given
    sizes = sizes_of(module, module)
    names = list(inspect.signature(LAYERS[str(name)]).parameters)
    positional = [sizes.get(key, value) for key, value in zip(names, given, strict=False)]
    named = {key: sizes.get(key, value) for key, value in keywords.items()}
    return [name, *positional, *([named] if named else [])]


def as_toml(entries: Sequence[Sequence[object]]) -> str:
    """Return the list as the lines of a ``[model]`` table."""
    lines = "".join(f"  [{', '.join(map(toml_value, entry))}],\n" for entry in entries)
    return f"[model]\nsequential = [\n{lines}]\n"
