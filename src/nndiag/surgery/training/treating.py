"""One round of treatments: those that keep the function first, then those whose price is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch

from nndiag.errors import InputError
from nndiag.remedies.plan import Treatment
from nndiag.surgery.proof import TOLERANCE, Replayed, output_change
from nndiag.surgery.training.readings import read_units
from nndiag.surgery.training.record import Done, Left, Treated
from nndiag.surgery.training.reinitialising import WHISPER, hear, reinitialise, wake
from nndiag.surgery.training.sorting import Case, sort_restarts, split_exact
from nndiag.surgery.training.trial import Limit, attempt, attempt_parts
from nndiag.surgery.training.turning import ANGLES, turn
from nndiag.surgery.training.ward import Ward
from nndiag.surgery.training.warming import warm_layer, warm_nodes

_ANEW = "incoming weights drawn anew, outgoing ones as good as zero"


@dataclass
class _Round:
    ward: Ward
    limit: Limit
    before: Replayed
    done: list[Done] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def treat(ward: Ward, treatments: Sequence[Treatment], limit: Limit) -> Treated:
    """Carry out what can be: in place, and layer by layer in the order of the network.

    A layer whose data are dead is warmed only where none of its nodes is started anew: those may cure it.

    Args:
        ward: the network; it is changed.
        treatments: what to do.
        limit: what treatments that change the function may cost.

    Raises:
        InputError: what promised to keep the function did not.
    """
    run = _Round(ward, limit, ward.replay())
    restarts = [t for t in treatments if t.kind == "reinitialise"]
    found = sort_restarts(ward, restarts, run.before.finite)
    run.left += found.left
    if not run.before.finite:
        _mend(run, found.broken)
        return Treated(tuple(run.done), tuple(run.left), ward.edits())
    exact, rest = split_exact(ward, found.measured, hear(ward, [case for _, case in found.measured]))
    rest = _keep_function(run, exact, rest)
    for _, cases in groupby(rest, key=lambda pair: (pair[1].layer, pair[0].code)):
        _measure_restarts(run, list(cases))
    for name, pairs in groupby(found.pairs, key=lambda pair: pair[0].layer):
        _wake(run, name, list(pairs))
    for name, silent in groupby(found.silent, key=lambda treatment: treatment.layer):
        _warm_nodes(run, name, list(silent))
    fresh = {done.treatment.layer for done in run.done}
    for treatment in treatments:
        if treatment.kind == "bias_warmup" and treatment.layer not in fresh:
            _warm(run, treatment)
    turns = [t for t in treatments if t.kind == "angular_noise" and t.layer in ward.layers]
    for name, group in groupby(turns, key=lambda treatment: treatment.layer):
        _turn(run, name, list(group))
    return Treated(tuple(run.done), tuple(run.left), ward.edits())


def _keep_function(run: _Round, exact: list[Case], rest: list[Case]) -> list[Case]:
    """Start anew what leaves the function as it is, all nodes where that is so; return the others.

    Where the function changes after all, nodes whose part a twin or nobody should have taken are among the others.

    Raises:
        InputError: it changes by nodes that put out a constant.
    """
    plain = [pair for pair in exact if pair[0].code not in ("ND104", "ND206", "ND304")]
    change: float | None = 0.0
    for chosen in ([*exact, *rest], exact, plain):
        if not chosen:
            continue
        chosen, whisper, change = _within_tolerance(run, chosen)
        if whisper is not None:
            how = _ANEW if whisper else f"{_ANEW}: exactly zero"
            run.done += [Done(treatment, "unchanged", _words(how, treatment)) for treatment, _ in chosen]
            gone = {*(left.treatment for left in run.left), *(treatment for treatment, _ in chosen)}
            return [pair for pair in (*exact, *rest) if pair[0] not in gone]
    if plain:
        said = "to what is not finite" if change is None else f"by {change:.2g} of the outputs' scale"
        why = f"starting {len(plain)} constant nodes anew should keep the function, and changes it {said}"
        raise InputError("heal", why, "leave them out with --only or --layers")
    return [*exact, *rest]


def _within_tolerance(run: _Round, chosen: list[Case]) -> tuple[list[Case], float | None, float | None]:
    """Start nodes anew so that they are heard as loud as the tolerance allows, at most as a whisper.

    Returns:
        The nodes: without those that nothing revives; the size of their outgoing weights,
        ``None`` where even zeros change the function and nothing was done; and the change.
    """
    ward, change = run.ward, None
    state, reset = ward.state(), dict(ward.reset)
    whisper, attempted, allowed = WHISPER, 0, _allowed(run)
    while attempted < 3 and chosen:
        cases = [case for _, case in chosen]
        reinitialise(ward, cases, hear(ward, cases), whisper)
        change = output_change(run.before, ward.replay())
        fits = change is not None and change <= (allowed if whisper else 2 * allowed)
        mute = _mute(ward, chosen) if fits else {}
        if fits and not mute:
            return chosen, whisper, change
        ward.put_back(state, reset)
        if mute:
            run.left += [Left(treatment, why) for treatment, why in mute.items()]
            chosen = [pair for pair in chosen if pair[0] not in mute]
            continue
        whisper = 0.0 if attempted or not change else whisper * allowed / (4 * change)
        attempted += 1
    return chosen, None if chosen else whisper, change


def _allowed(run: _Round) -> float:
    """Return what a round may add to the change of a function that is to stay: half of what the tolerance leaves."""
    so_far = output_change(run.limit.before, run.before)
    kept = so_far is not None and so_far <= TOLERANCE
    return (TOLERANCE - (so_far or 0.0)) / 2 if kept else TOLERANCE / 2


def _mute(ward: Ward, chosen: list[Case]) -> dict[Treatment, str]:
    """Return why nodes put out one number although they were started anew."""
    with ward.looking():
        readings = read_units(ward.model, ward.probe, ward.owners, {case.layer for _, case in chosen})
    active = {name: reading.active for name, reading in readings.items()}
    found = {}
    for treatment, case in chosen:
        reading = readings.get(case.layer)
        if reading is None:
            continue
        if bool(reading.z[case.node].max() == reading.z[case.node].min()):
            found[treatment] = "what reaches it is constant on the probe"
        elif not float(active[case.layer][case.node]):
            found[treatment] = (
                "it would not fire either if it started anew: what holds it down is no parameter of its own"
            )
    return found


def _words(how: str, treatment: Treatment) -> str:
    if treatment.twin is not None:
        return f"{how}; node {treatment.twin}, which it repeats, takes its part over"
    return how


def _mend(run: _Round, broken: list[Case]) -> None:
    """Start anew the nodes that are not finite: what they did is lost."""
    cases = [case for _, case in broken]
    if not cases:
        return
    reinitialise(run.ward, cases, hear(run.ward, cases))
    how = f"{_ANEW}; what it did is lost"
    run.done += [Done(treatment, "finite", how) for treatment, _ in broken]


def _measure_restarts(run: _Round, group: list[Case]) -> None:
    ward = run.ward

    def change(part: Sequence[Case]) -> None:
        cases = [case for _, case in part]
        reinitialise(ward, cases, hear(ward, cases))

    state, reset = ward.state(), dict(ward.reset)
    change(group)
    mute = _mute(ward, group)
    ward.put_back(state, reset)
    run.left += [Left(treatment, why) for treatment, why in mute.items()]
    group = [pair for pair in group if pair[0] not in mute]
    done, left = attempt_parts(ward, run.limit, group, change) if group else ([], [])
    how = f"{_ANEW}, its mean output added to the bias after it"
    run.done += [Done(treatment, "measured", _words(how, treatment)) for treatment, _ in done]
    run.left += [Left(t, f"to start it anew would {cost}") for (t, _), cost in left]


def _wake(run: _Round, layer: str, pairs: list[tuple[Treatment, Treatment]]) -> None:
    """Start pairs of queries and keys anew where the function stays."""
    ward, present = run.ward, run.ward.replay()
    state, reset = ward.state(), dict(ward.reset)
    queries, keys = (
        torch.tensor([treatment.index for treatment in some]) for some in zip(*pairs, strict=True)
    )
    wake(ward, layer, queries, keys)
    change = output_change(present, ward.replay())
    if change is not None and change <= _allowed(run):
        for query, key in pairs:
            run.done.append(
                Done(query, "unchanged", "drawn anew, as good as zero: its key lets a gradient reach it")
            )
            run.done.append(Done(key, "unchanged", "drawn anew: its query is as good as zero"))
        return
    ward.put_back(state, reset)
    why = "to start it anew with its partner would change the function"
    run.left += [Left(treatment, why) for pair in pairs for treatment in pair]


def _warm_nodes(run: _Round, layer: str, treatments: list[Treatment]) -> None:
    raised = [0.0]

    def change(part: Sequence[Treatment]) -> None:
        raised[0] = warm_nodes(run.ward, layer, [t.index for t in part if t.index is not None]) or 0.0

    done, left = attempt_parts(run.ward, run.limit, treatments, change)
    how = "bias raised until it fires on a twentieth of the probe: its outgoing weights are not its own"
    run.done += [Done(replace(t, kind="bias_warmup"), "measured", how) for t in done]
    run.left += [Left(replace(t, kind="bias_warmup"), f"to raise its bias would {cost}") for t, cost in left]


def _warm(run: _Round, treatment: Treatment) -> None:
    """Raise the bias of a layer that data do not reach, or of one dead output."""
    if treatment.layer not in run.ward.layers:
        run.left.append(Left(treatment, "its layer is not known"))
        return
    if treatment.index is not None:
        _warm_nodes(run, treatment.layer, [treatment])
        return
    risen: list[float | None] = []
    cost = attempt(run.ward, run.limit, _noting(risen, lambda: warm_layer(run.ward, treatment.layer)))
    if cost is not None:
        run.left.append(Left(treatment, f"to raise its biases by {risen[0] or 0.0:.3g} would {cost}"))
    elif risen[0] is None:
        run.left.append(Left(treatment, "it has no bias to raise before an activation with an edge"))
    else:
        run.done.append(Done(treatment, "measured", f"biases raised by {risen[0]:.4g}"))


def _noting(into: list[float | None], function: Callable[[], float | None]) -> Callable[[], None]:
    return lambda: into.append(function())


def _turn(run: _Round, layer: str, treatments: list[Treatment]) -> None:
    """Turn nodes by the largest angle that costs no more than it may."""
    nodes = [t.index for t in treatments if t.index is not None]
    cost: str | None = None
    for angle in ANGLES:
        cost = attempt(run.ward, run.limit, _turning(run.ward, layer, nodes, angle))
        if cost is None:
            how = f"weights turned by {angle:g} rad along the part of the gradient that is orthogonal to them"
            run.done += [Done(t, "measured", how) for t in treatments]
            return
    run.left += [Left(t, f"to turn it by {ANGLES[-1]:g} rad would {cost}") for t in treatments]


def _turning(ward: Ward, layer: str, nodes: list[int], angle: float) -> Callable[[], None]:
    return lambda: turn(ward, layer, nodes, angle)
