"""The network that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from nndiag.config.record import RunConfig
from nndiag.config.trust import require_trust
from nndiag.model.factory import build_model
from nndiag.model.sequential import LARGEST, build_sequential


def sequential_source(config: RunConfig) -> str:
    """Return where the list of layers stands, for messages."""
    return f"{config.origin('model.sequential').source} [model] sequential"


def build_from_config(
    config: RunConfig,
    trust: bool,
    offered: Mapping[str, object] = MappingProxyType({}),
    note: Callable[[str], None] = lambda sentence: None,
    largest: int = LARGEST,
) -> nn.Module | None:
    """Return the network of the ``[model]`` table, or ``None`` where there is no such table.

    A layer list is data and always allowed. A factory is code: the user's own ``pyproject.toml`` may name
    one, a scanned directory only with ``trust``.

    Args:
        config: the merged configuration.
        trust: whether the user gave ``--trust``.
        offered: as for ``build_model``.
        note: as for ``build_model``.
        largest: how many numbers a layer list may hold.

    Raises:
        UsageError: the layers or the spec are wrong.
        InputError: the factory comes from the scanned directory and ``trust`` is false.
        ModelError: the factory fails.
    """
    table = config.model
    if table.sequential is not None:
        return build_sequential(table.sequential, sequential_source(config), largest)
    if table.factory is None:
        return None
    origin = require_trust(config, "model.factory", trust)
    option = f"{origin.source} [model] factory"
    return build_model(table.factory, origin.folder, table.kwargs, option=option, offered=offered, note=note)
