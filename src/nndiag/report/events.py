"""What happened, in sentences: the most important first. A single checkpoint is a run of one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nndiag.records.report import DEGENERATE, Diagnosis, NodeDiagnosis, Report
from nndiag.report.course import Course, LayerCourse, course, trailing
from nndiag.report.facts import on_what
from nndiag.report.groups import SEVERITIES, Group, gather
from nndiag.report.numbers import counted, number
from nndiag.report.phrases import called, hence, predicate, share

_STATES = {
    "ND101": "not finite",
    "ND102": "collapsed",
    "ND201": "dead",
    "ND202": "saturated",
    "ND203": "constant",
    "ND204": "dormant",
    "ND301": "cut off from the gradient",
    "ND304": "without influence",
    "ND401": "on a plateau",
}
"""Codes that say what a degenerate layer is, the plainest reason first."""


@dataclass(frozen=True)
class Event:
    """One thing that happened; a smaller ``rank`` is graver. ``hence`` names what follows from it."""

    rank: tuple[float, ...]
    kind: Literal["error", "warning", "info", "good"]
    sentence: str
    hence: str = ""


def events(report: Report) -> tuple[Event, ...]:
    """Return everything worth telling, the worst first; never empty: "nothing is wrong" is worth telling."""
    run, last = course(report), report.checkpoints[-1]
    groups = gather(last)
    found = [*_layer_events(run, last, groups), *_loss_events(run)]
    told = {layer.name for layer in run.layers if layer.since is not None}
    for group in groups:
        if group.severity != "info" and not (group.layer in told and _says_degenerate(group)):
            found.append(_group_event(group, run))
    found += _recoveries(run)
    if all(event.kind in ("info", "good") for event in found):
        found.append(_all_is_well(report, run))
    return tuple(sorted(found, key=lambda event: event.rank))


def _says_degenerate(group: Group) -> bool:
    return group.code == "ND252" or (group.code in _STATES and group.code != "ND101")


def _layer_events(run: Course, last: Diagnosis, groups: Sequence[Group]) -> Iterator[Event]:
    """One event for each layer that has more than half of its nodes degenerate, to the end."""
    members: defaultdict[str, list[NodeDiagnosis]] = defaultdict(list)
    for node in last.nodes:
        members[node.layer].append(node)
    for place, layer in enumerate(run.layers):
        if layer.since is None:
            continue
        code, name, count = _main_state(members[layer.name], layer)
        state = _STATES.get(code, name)
        mostly = "" if count == layer.nodes else "mostly "
        when, once = _layer_since(run, layer, code, count)
        sentence = (
            f"{_start(layer.name)} is {mostly}{state}{when}: "
            f"{_all_or_share(count, layer.nodes)} {predicate(code, name, count)}{once}."
        )
        causes = [g for g in groups if g.layer == layer.name and g.code == code]
        doubtful = any(g.layer == layer.name and g.code == "ND252" and g.severity != "error" for g in groups)
        kind: Literal["error", "warning"] = "warning" if doubtful else "error"
        yield Event((1, layer.since, -count / layer.nodes, place), kind, sentence, _follows(causes))


def _layer_since(run: Course, layer: LayerCourse, code: str, count: int) -> tuple[str, str]:
    """Return since when, and how it began: a layer is dead once all of it is, not half."""
    assert layer.since is not None
    counts = run.present.get((code, layer.name), layer.degenerate)
    whole = trailing([one == layer.nodes for one in counts]) if count == layer.nodes else None
    if whole is None or whole == layer.since:
        return _since(run, layer.since, layer.degenerate, count)
    when, _ = _since(run, whole, counts, count)
    return f"{when} (mostly since {run.at(layer.since)})", ""


def _all_or_share(count: int, nodes: int) -> str:
    return f"all {nodes:,} nodes" if count == nodes > 1 else share(count, nodes)


def _start(layer: str) -> str:
    return _capital(called(layer))


def _capital(words: str) -> str:
    """Return a sentence's start in upper case, but leave names as they are."""
    return words[:1].upper() + words[1:] if words.startswith(("layer ", "the ")) else words


def _main_state(nodes: list[NodeDiagnosis], layer: LayerCourse) -> tuple[str, str, int]:
    """Return the plainest reason that holds for at least half of the degenerate nodes: code, name, nodes."""
    bad = [node for node in nodes if node.verdict in DEGENERATE]
    codes = Counter(code for node in bad for code in {finding.code for finding in node.findings})
    for code in _STATES:
        if codes[code] and 2 * codes[code] >= len(bad):
            return code, "", codes[code]
    return "", "degenerate", len(bad) or (layer.degenerate[-1] or 0)


def _follows(causes: list[Group]) -> str:
    if not causes:
        return ""
    every = tuple(one for cause in causes for one in cause.consequences)
    return hence(replace(causes[0], consequences=every))


def _since(run: Course, start: int, counts: tuple[int | None, ...], now: int) -> tuple[str, str]:
    """Return since when, and how many there were then if that has changed; nothing for one checkpoint."""
    if len(run.labels) == 1:
        return "", ""
    when = f" since {run.at(start)}" + (", the first checkpoint" if start == 0 else "")
    then = counts[start] or 0
    return when, f" ({then:,} then)" if start < len(counts) - 1 and then != now else ""


def _loss_events(run: Course) -> Iterator[Event]:
    losses = run.losses
    if (start := trailing([loss is not None and math.isnan(loss) for loss in losses])) is not None:
        when, _ = _since(run, start, (0,) * len(losses), 0)
        yield Event((0, start, 1), "error", f"The loss is not finite{when}.")
        return
    known = [(loss, i) for i, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    if len(known) < 2 or known[-1][1] != len(losses) - 1:
        return
    best, best_at = min(known)
    if best > 0 and known[-1][0] > 1.5 * best:
        sentence = (
            f"The loss rose from {number(best)} at {run.at(best_at)} to {number(known[-1][0])} "
            f"at {run.at(known[-1][1])}."
        )
        yield Event((3, best_at), "warning", sentence)


def _group_event(group: Group, run: Course) -> Event:
    counts = run.present.get((group.code, group.layer), ())
    start = trailing([count > 0 for count in counts])
    when, once = _since(run, start, counts, len(group.nodes)) if start is not None else ("", "")
    where = called(group.layer) if group.layer is not None else "the model"
    if group.nodes:
        count = len(group.nodes)
        who = f"{share(count, group.layer_nodes)} of {where}"
        if group.layer_nodes == 1:
            who = f"The only node of {where}"
        sentence = f"{who} {predicate(group.code, group.name, count)}{when}{once}."
    else:
        message = group.message.rstrip(".")
        what = f"{group.code} {group.name}{when}"
        sentence = f"{_capital(where)}: {message} ({what})." if message else f"{_capital(where)}: {what}."
    # a node that is not finite comes before all else; one that overshoots may be why layers fell after it
    gravity = {"ND101": 0, "ND402": 1 if group.gravity == 0 else 4}.get(group.code, 2 + 2 * group.gravity)
    rank = (gravity, start or 0, -len(group.nodes) / max(group.layer_nodes, 1))
    return Event(rank, SEVERITIES[group.gravity], sentence, hence(group))


def _recoveries(run: Course) -> Iterator[Event]:
    for layer in run.layers:
        counts = [count or 0 for count in layer.degenerate]
        worst = max(range(len(counts)), key=counts.__getitem__)
        if layer.since is None and 2 * counts[worst] > layer.nodes:
            were = "was" if counts[worst] == 1 else "were"
            sentence = (
                f"{_start(layer.name)} has recovered: {share(counts[worst], layer.nodes)} {were} degenerate "
                f"at {run.at(worst)}, {counts[-1]:,} at {run.at(len(counts) - 1)}."
            )
            yield Event((7, worst), "good", sentence)


def _all_is_well(report: Report, run: Course) -> Event:
    """Say what is in order, and what that rests on; a node that could not be judged is not in order."""
    last = report.checkpoints[-1]
    verdicts: Counter[str] = Counter()
    for layer in last.layers:
        verdicts.update(layer.verdicts)
    nodes = sum(layer.nodes for layer in last.layers)
    unused = sum(layer.unobserved for layer in last.layers)
    healthy, unknown = verdicts["healthy"], verdicts["unknown"] - unused
    where = "" if len(run.labels) == 1 else f" at {run.at(len(run.labels) - 1)}, the last checkpoint,"
    basis = on_what(last.probe) if last.probe else "from the weights alone"
    level = f"(level: {last.level})"
    if healthy == nodes:
        whole = f"all {counted(nodes, 'node')} of {counted(len(last.layers), 'layer')} are healthy"
        if nodes == 1:
            whole = "the only node is healthy"
        return Event((6,), "good", f"Nothing is wrong: {whole}{where} {basis} {level}.")
    if healthy == nodes - unused:
        whole = f"all {counted(healthy, 'node')} that the probe uses are healthy"
        return Event((6,), "good", f"Nothing is wrong: {whole}{where} {basis} {level}.")
    but = f"only {healthy:,} of {counted(nodes, 'node')} count as healthy"
    if unknown:
        judged = "none of the" if unknown + unused == nodes else f"only {nodes - unknown - unused:,} of"
        but = f"{judged} {counted(nodes, 'node')} could be judged"
    if verdicts["saddle"]:
        but += f", {verdicts['saddle']:,} have negative curvature"
    return Event((6,), "info", f"Nothing wrong was found{where} {basis}, but {but} {level}.")
