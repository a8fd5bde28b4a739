"""Edits of a model and its optimiser among the entries of torch.distributed.checkpoint.

Its loader asks for every entry that the network and optimiser of today have. So what an optimiser would make at its
first step is written for a parameter that is new: the zeros of a fresh start.
"""

from __future__ import annotations

from collections.abc import Mapping

from nndiag.checkpoint.dcp_optimizer import is_of_optimizer
from nndiag.checkpoint.plain import plain_number
from nndiag.surgery.writing.dcp_entries import Entries, Source
from nndiag.surgery.writing.job import Job
from nndiag.surgery.writing.moments import Value, follow, start
from nndiag.surgery.writing.optimizers import OptimizerChange

Owned = Mapping[int | str, Mapping[str, str]]


def edit_weights(entries: Entries, job: Job) -> None:
    """Put new weights among the entries, and take out those that go."""
    changes, flat = job.changes, {}
    for name in entries.source.metadata.tensors:
        *outer, last = entries.source.path(name)
        if not is_of_optimizer((*outer, last)) and ".".join(map(str, outer)) == changes.place:
            flat[str(last)] = name
    for name, value in changes.weights.items():
        if name not in flat:
            like = flat[changes.added[name]]
            last = str(entries.source.path(like)[-1])
            flat[name] = like.removesuffix(last) + name
            entries.add(flat[name], like, value, last, name)
        entries.put(flat[name], value)
    for name in changes.dropped:
        entries.remove(flat[name])


def edit_optimizers(entries: Entries, job: Job) -> None:
    """Let every optimiser follow, stay, or lose its state, as planned."""
    states, groups = entries.source.owned("state"), entries.source.owned("param_groups")
    for plan in job.optimizers:
        state, group = states.get(plan.key, {}), groups.get(plan.key, {})
        if plan.fate == "emptied":
            for kept in state.values():
                _remove(entries, kept)
        elif plan.fate == "follows":
            _follow(entries, state, job, plan)
            _regroup(entries, state, group, job, plan)


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


def _regroup(entries: Entries, state: Owned, groups: Owned, job: Job, plan: OptimizerChange) -> None:
    """Take out what belongs to parameters that are gone, and put in what belongs to new ones."""
    source = entries.source
    gone = {plan.keys[name] for name in job.changes.gone if name in plan.keys}
    for owner in gone:
        _remove(entries, state.get(owner, {}))
        _remove(entries, groups.get(owner, {}))
    behind: dict[int | str, str] = {}
    for name, neighbour in job.changes.fresh.items():
        key = plan.keys.get(neighbour, 0)
        if not isinstance(key, str):  # by number, which the loader of DCP does not write
            continue
        new = behind[key] = key.removesuffix(neighbour) + name
        value = next(value for entry, value in job.changes.weights.items() if entry.endswith(name))
        for last, flat in state.get(key, {}).items():
            first = start(last, _value(source, flat), value)
            entries.add(flat.replace(f".{key}.", f".{new}."), flat, first, key, new)
        for flat in groups.get(key, {}).values():
            entries.add(flat.replace(f".{key}.", f".{new}."), flat, source.value(flat), key, new)
    for options in groups.values():
        members = source.value(options["params"]) if "params" in options else None
        if isinstance(members, list) and (gone or behind):
            listed = (key for member in members for key in (member, behind.get(member)))
            entries.put(options["params"], [key for key in listed if key is not None and key not in gone])


def _remove(entries: Entries, kept: Mapping[str, str]) -> None:
    for name in kept.values():
        entries.remove(name)


def _value(source: Source, name: str) -> Value:
    if name in source.metadata.tensors:
        return source.tensor(name)
    number = plain_number(source.value(name))
    return 0 if number is None else number
