"""The optimiser that a checkpoint holds: its facts, and its second moments by the model's own parameter
names.

What cannot be matched for certain is left out, and the note says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from nndiag.errors import printable
from nndiag.model.fit import Fit
from nndiag.model.optimizer_facts import facts_in, facts_of, number
from nndiag.model.optimizer_order import Assignment, Key, SavedOptimizer, assign
from nndiag.records.measured import OptimizerFacts


@dataclass(frozen=True)
class OptimizerState:
    """The update rule that trained the checkpoint and what it has accumulated.

    ``second_moments`` maps a parameter's name to the running mean of its squared gradient, in the parameter's
    shape (for AMSGrad its running maximum, which is what divides the step); parameters without one have no
    entry. They are not corrected for bias: that takes the parameter's entry in ``steps``. ``rules`` are the facts of
    every parameter that the optimiser holds, which differ where its groups do.
    """

    facts: OptimizerFacts
    step: int | None = None
    second_moments: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    rules: Mapping[str, OptimizerFacts] = field(default_factory=dict, repr=False)
    steps: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def eps(self) -> float | None:
        """What is added to the root of the second moment, where it is known."""
        return self.facts.eps


def match_optimizer(
    model: nn.Module, fit: Fit, optimizers: Sequence[SavedOptimizer]
) -> tuple[OptimizerState | None, str]:
    """Return the state of the optimiser that trained ``model``, and a note on what was chosen or left out.

    State is matched by name where it has names, else by position as far as every shape fits
    (``optimizer_order``).

    Args:
        model: the network whose parameters are meant.
        fit: where its weights were found.
        optimizers: those that the checkpoint holds.

    Returns:
        The state, or ``None`` where there is no optimiser or none can be chosen; and one sentence for stderr,
        or ``""``.
    """
    matched = [(saved, assign(model, fit, saved)) for saved in optimizers]
    if len(matched) > 1:
        fitting = [pair for pair in matched if pair[1].fits]
        if len(fitting) != 1:
            keys = ", ".join(f'"{saved.key}"' for saved in optimizers[:5])
            fit_words = f"{len(fitting) or 'none'} of them fit the model"
            return None, printable(
                f"optimiser: the checkpoint holds {len(matched)} ({keys}) and {fit_words}; "
                "none is used, give --optimizer and --lr"
            )
        matched = fitting
    if not matched:
        return None, ""
    saved, assignment = matched[0]
    facts, differing = facts_of(_groups(saved, assignment), list(saved.state.values()))
    notes = [assignment.note] if assignment.note else []
    if facts.name is None:
        notes.append("its rule is not known, give --optimizer")
    elif not facts.is_known:
        notes.append(f"it is neither SGD nor Adam ({facts.name}), and no stability margin is known of it")
    state = OptimizerState(
        facts,
        _step(saved, assignment),
        _second_moments(saved, assignment),
        _rules(saved, assignment, facts.name),
        _steps(saved, assignment),
    )
    notes += _left_out(state, differing)
    note = f"optimiser: {'; '.join(notes)}" if notes else ""
    return state, printable(note)


def _left_out(state: OptimizerState, differing: Sequence[str]) -> list[str]:
    """Say what the groups do not agree on, and which parameters have no second moments."""
    notes = []
    if differing:
        used = "each parameter has its own" if state.rules else "which is left out"
        notes.append(f"its parameter groups differ in {', '.join(differing)}: {used}")
    lacking = [name for name in state.rules if name not in state.second_moments]
    if state.facts.is_adam and lacking:
        few = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        notes.append(f"it has no second moments of {few}: their stability margins are left out")
    return notes


def _rules(saved: SavedOptimizer, assignment: Assignment, name: str | None) -> dict[str, OptimizerFacts]:
    """Return the facts of every parameter that was matched, those of its group."""
    owners = {}
    for group in saved.groups:
        members = group.get("params")
        facts = facts_in(group, name)
        for key in members if isinstance(members, list | tuple) else ():
            if isinstance(key, int | str):
                owners[key] = facts
    return {own: owners[key] for own, key in assignment.keys.items() if key in owners}


def _steps(saved: SavedOptimizer, assignment: Assignment) -> dict[str, int]:
    """Return how many steps each parameter took part in."""
    steps = {name: number(saved.state.get(key, {}).get("step")) for name, key in assignment.keys.items()}
    return {name: int(step) for name, step in steps.items() if step is not None}


def _groups(saved: SavedOptimizer, assignment: Assignment) -> list[Mapping[str, object]]:
    """Return the parameter groups that hold the model's parameters; all of them where that is not known."""
    mine = set(assignment.keys.values())
    groups = []
    for group in saved.groups:
        members = group.get("params")
        if isinstance(members, list | tuple) and any(
            isinstance(key, int | str) and key in mine for key in members
        ):
            groups.append(group)
    return groups or list(saved.groups)


def _step(saved: SavedOptimizer, assignment: Assignment) -> int | None:
    """Return the largest number of steps that the state counts."""
    keys: Sequence[Key] = list(assignment.keys.values()) or list(saved.state)
    steps = [number(saved.state[key].get("step")) for key in keys if key in saved.state]
    return max((int(step) for step in steps if step is not None), default=None)


def _second_moments(saved: SavedOptimizer, assignment: Assignment) -> dict[str, Tensor]:
    moments = {}
    for name, key in assignment.keys.items():
        state = saved.state.get(key, {})
        moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        if isinstance(moment, Tensor):
            moments[name] = moment
    return moments
