"""Edits of a model and its optimiser among the entries of torch.distributed.checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from nndiag.checkpoint.dcp_optimizer import is_of_optimizer
from nndiag.checkpoint.plain import plain_number
from nndiag.surgery.writing.dcp_entries import Entries, Source
from nndiag.surgery.writing.job import Job
from nndiag.surgery.writing.moments import Value, follow
from nndiag.surgery.writing.optimizers import OptimizerChange

Owned = Mapping[int | str, Mapping[str, str]]


def edit_weights(entries: Entries, job: Job) -> None:
    """Put new weights among the entries."""
    changes, flat = job.changes, {}
    for name in entries.source.metadata.tensors:
        *outer, last = entries.source.path(name)
        if not is_of_optimizer((*outer, last)) and ".".join(map(str, outer)) == changes.place:
            flat[str(last)] = name
    for name, value in changes.weights.items():
        entries.put(flat[name], value)


def edit_optimizers(entries: Entries, job: Job) -> None:
    """Let every optimiser follow, stay, or lose its state, as planned."""
    states = entries.source.states()
    for plan in job.optimizers:
        state = states.get(plan.key, {})
        if plan.fate == "emptied":
            for kept in state.values():
                _remove(entries, kept)
        elif plan.fate == "follows":
            _follow(entries, state, job, plan)


def _follow(entries: Entries, state: Owned, job: Job, plan: OptimizerChange) -> None:
    for name, change in job.changes.parameters.items():
        kept = state.get(plan.keys.get(name, ""), {})
        followed = follow({last: _value(entries.source, flat) for last, flat in kept.items()}, change)
        if followed.changed is None:
            _remove(entries, kept)
            job.notes.append(
                f"the optimiser's state of {name} cannot be cut down and was left out: it starts afresh"
            )
            continue
        for last, value in followed.changed.items():
            entries.put(kept[last], value)
        job.notes.extend(
            f"nobody knows a fresh start for the optimiser's {last}: check it"
            for last in sorted(followed.unknown)
        )


def _remove(entries: Entries, kept: Mapping[str, str]) -> None:
    for name in kept.values():
        entries.remove(name)


def _value(source: Source, name: str) -> Value:
    if name in source.metadata.tensors:
        return source.tensor(name)
    number = plain_number(source.value(name))
    return 0 if number is None else number
