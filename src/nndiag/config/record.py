"""A configuration that remembers where each of its keys stands.

Relative paths count from the file they stand in, and code is trusted by whose file names it, so after a merge
every key still knows its own origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from nndiag.config.tables import (
    ActionsTable,
    CheckpointsTable,
    ModelTable,
    OptimizerTable,
    PolicyTable,
    ProbeTable,
    RulesTable,
    Table,
    Tables,
)

AnyTable = TypeVar("AnyTable", bound=Table)


@dataclass(frozen=True)
class Origin:
    """The file that a key stands in: its folder, its name for messages, and whether it is the user's own or
    the run's.
    """

    folder: Path
    source: str
    owner: Literal["run", "user"]


@dataclass(frozen=True)
class RunConfig:
    """The tables, ``folder`` and ``source`` of the file they were read from, and the origin of each key that
    is given.

    ``source`` is empty where there was no file. ``origins`` maps ``"table.key"`` to its origin; after a merge
    they may differ.
    """

    folder: Path
    source: str = ""
    model: ModelTable = field(default_factory=ModelTable)
    checkpoints: CheckpointsTable = field(default_factory=CheckpointsTable)
    probe: ProbeTable = field(default_factory=ProbeTable)
    optimizer: OptimizerTable = field(default_factory=OptimizerTable)
    policy: PolicyTable = field(default_factory=PolicyTable)
    actions: ActionsTable = field(default_factory=ActionsTable)
    rules: RulesTable = field(default_factory=RulesTable)
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def origin(self, key: str) -> Origin:
        """Return where ``"probe.data"`` stands.

        Raises:
            KeyError: the key is not given.
        """
        return self.origins[key]

    @classmethod
    def of(cls, tables: Tables, origin: Origin) -> RunConfig:
        """Return the configuration that one file holds."""
        origins = {
            f"{name}.{key}": origin
            for name in Tables.model_fields
            for key in getattr(tables, name).model_fields_set
        }
        fields = {name: getattr(tables, name) for name in Tables.model_fields}
        return cls(origin.folder, origin.source, origins=origins, **fields)


def merge(user: RunConfig, run: RunConfig) -> RunConfig:
    """Return ``run`` with the keys that only ``user`` gives; ``run`` wins key by key, thresholds one by one.

    The model is one choice: where ``run`` gives a model, nothing of the user's model is kept. A user's file
    that lies in the run's own folder came with the run: its keys count as the run's.
    """
    inside = user.folder.resolve().is_relative_to(run.folder.resolve())
    theirs = {
        key: Origin(origin.folder, origin.source, "run") if inside else origin
        for key, origin in user.origins.items()
    }
    tables = {name: _filled(getattr(run, name), getattr(user, name)) for name in Tables.model_fields}
    if run.model.model_fields_set:
        tables["model"] = run.model
        theirs = {key: origin for key, origin in theirs.items() if not key.startswith("model.")}
    tables["rules"] = tables["rules"].model_copy(
        update={"thresholds": {**user.rules.thresholds, **run.rules.thresholds}}
    )
    return RunConfig(run.folder, run.source or user.source, origins={**theirs, **run.origins}, **tables)


def _filled(table: AnyTable, other: AnyTable) -> AnyTable:
    """Return ``table`` with the keys that only ``other`` gives."""
    return table.model_copy(
        update={key: getattr(other, key) for key in other.model_fields_set - table.model_fields_set}
    )
