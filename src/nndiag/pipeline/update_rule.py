"""The update rule of a checkpoint: what its optimiser state says, changed by what the user says."""

from __future__ import annotations

from dataclasses import replace

from nndiag.config.record import RunConfig
from nndiag.measures import Update
from nndiag.model.optimizer import OptimizerState
from nndiag.pipeline.settings import ScanSettings
from nndiag.records.measured import OptimizerFacts

_FIELDS = ("lr", "momentum", "betas", "weight_decay", "horizon")


def update_rule(
    saved: OptimizerState | None, step: int | None, config: RunConfig, settings: ScanSettings
) -> Update | None:
    """Return the update rule, or ``None`` where nothing is known of it.

    Args:
        saved: from the checkpoint.
        step: steps trained, as the checkpoint says; the horizon where none is given.
        config: the run's and the user's files; they win over the checkpoint.
        settings: options; they win over everything.
    """
    facts = saved.facts if saved is not None else OptimizerFacts()
    source = facts.source if saved is not None else ""
    rules = dict(saved.rules) if saved is not None else {}
    for table, origin in ((config.optimizer, "nndiag.toml"), (settings, "options")):
        name = table.optimizer if isinstance(table, ScanSettings) else table.name
        given = {field: getattr(table, field) for field in _FIELDS if getattr(table, field) is not None}
        if name is not None:
            given["name"] = name
        if given:
            facts, source = replace(facts, **given), origin
            rules = {one: replace(rule, **given) for one, rule in rules.items()}
    if not source:
        return None
    if saved is None and facts.name is None:
        facts = replace(facts, name="sgd")  # a learning rate alone is that of gradient descent
    steps = step if step is not None else (saved.step if saved is not None else None)
    if facts.horizon is None and steps:
        facts = replace(facts, horizon=float(steps))
    rules = {one: replace(rule, horizon=facts.horizon, source=source) for one, rule in rules.items()}
    facts = replace(facts, source=source)
    if saved is None:
        return Update(facts, {})
    return Update(facts, saved.second_moments, saved.step, rules, saved.steps)
