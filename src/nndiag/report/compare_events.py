"""What happened along a run, in sentences, the most important first; and what to do about it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from nndiag.records.comparison import Comparison, LayerComparison, NodeComparison
from nndiag.records.report import DEGENERATE
from nndiag.report.compare_clock import clock_of
from nndiag.report.compare_course import compared_course
from nndiag.report.course import Course, LayerCourse
from nndiag.report.events import Event
from nndiag.report.numbers import counted, number, percent
from nndiag.report.phrases import called, share

_JUMP = 2.0
"""Ratio of gradient norms or losses from one checkpoint to the next that is worth a word."""

FEW = 0.1
"""Share of the nodes below which deaths are no more than most networks have."""

ByLayer = Mapping[str, list[NodeComparison]]


def compared_events(comparison: Comparison, run: Course) -> tuple[Event, ...]:
    """Return everything worth telling, the worst first; never empty."""
    members = _having(comparison)
    found = [*_of_model(comparison, run)]
    for place, (layer, course) in enumerate(zip(comparison.layers, run.layers, strict=True)):
        found += _of_layer(comparison, run, layer, course, members, place)
    found += _runaways(comparison, members)
    if all(event.kind in ("info", "good") for event in found):
        found.append(_all_is_well(comparison, members))
    return tuple(sorted(found, key=lambda event: event.rank))


def _having(comparison: Comparison) -> dict[str, ByLayer]:
    """Return the nodes by code and layer."""
    found: defaultdict[str, defaultdict[str, list[NodeComparison]]] = defaultdict(lambda: defaultdict(list))
    for node in comparison.nodes:
        for finding in node.findings:
            found[finding.code][node.layer].append(node)
    return dict(found)


def _of_layer(
    comparison: Comparison, run: Course, layer: LayerComparison, course: LayerCourse, members: Mapping[str, ByLayer],
    place: int,
) -> Iterator[Event]:  # fmt: skip
    new = members.get("ND701", {}).get(layer.name, [])
    if new:
        lasting = sum(any(finding.code == "ND702" for finding in node.findings) for node in new)
        yield _died(comparison, run, layer, course, new, lasting, place)
    still = [n for n in members.get("ND702", {}).get(layer.name, []) if n.degenerate_since == 0]
    if still:
        words = f"{_start(layer)}: {share(len(still), layer.nodes)} {_was(len(still))} degenerate all along."
        grave = 2 * len(still) >= layer.nodes
        yield Event((2 if grave else 8, place), "warning" if grave else "info", words)
    back = members.get("ND708", {}).get(layer.name, [])
    if back:
        words = f"{_start(layer)}: {share(len(back), layer.nodes)} recovered from a degenerate state."
        yield Event((7, place), "good", words)
    frozen = members.get("ND706", {}).get(layer.name, [])
    if frozen:
        words = f"{_start(layer)}: the bias of {share(len(frozen), layer.nodes)} stands still while the weights move."
        yield Event((8, place), "info", words)
    shrinking = members.get("ND703", {}).get(layer.name, [])
    if shrinking:
        half = median(float(_evidence(node, "ND703", "half_life")) for node in shrinking)
        words = (
            f"{_start(layer)}: {share(len(shrinking), layer.nodes)} {_verb('shrink', len(shrinking))} towards zero, "
            f"by half every {clock_of(comparison, run.word).lasting(half)}."
        )
        yield Event((2, place), "warning", words)
    if layer.decline is not None:
        yield from _decline(comparison, run, layer, place)


def _died(
    comparison: Comparison, run: Course, layer: LayerComparison, course: LayerCourse, new: Sequence[NodeComparison],
    absorbed: int, place: int,
) -> Event:  # fmt: skip
    """Tell of the nodes that are newly degenerate: how many, when most of them fell, and whether they came back."""
    since = Counter(node.degenerate_since for node in new if node.degenerate_since is not None)
    became, now, beside = _what_befell(layer)
    whole = course.whole_since
    if whole and layer.nodes > 1:
        sentence = f"{_start(layer)}: all {layer.nodes:,} nodes are {now} since {run.at(whole)}{beside}"
    else:
        sentence = f"{_start(layer)}: {share(len(new), layer.nodes)} {became}{beside}"
    falls = _falls(layer)
    worst = max(falls, key=lambda step: (since.get(step, 0), falls[step], -step), default=0)
    if worst and len(run.labels) > 2:
        fell, stayed = falls[worst], since.get(worst, 0)
        gone = fell - stayed
        left = "none recovered" if not gone else f"{gone:,} of them recovered, if only for a time"
        who = counted(fell, "node") if fell != len(new) else "all of them"
        sentence += f"; {who} between {run.at(worst - 1)} and {run.labels[worst]}, {left}"
        sentence += _at_that_step(comparison, worst)
    if absorbed:
        sentence += (
            f"; {absorbed:,} {'has' if absorbed == 1 else 'have'} not left that state for half of the run"
        )
    lost = len(new) / layer.nodes
    gravity, kind = (1, "error") if lost >= 0.5 else (3, "warning") if lost >= FEW else (7, "info")
    return Event((gravity, worst, place), kind, sentence + ".")  # type: ignore[arg-type]


def _falls(layer: LayerComparison) -> dict[int, int]:
    """Return how many nodes became degenerate at each step."""
    found = {}
    for step in layer.steps:
        pairs = (pair.split("->") for pair in step.transitions)
        counts = step.transitions.values()
        fell = sum(
            n for (a, b), n in zip(pairs, counts, strict=True) if a not in DEGENERATE and b in DEGENERATE
        )
        if fell:
            found[step.to] = fell
    return found


def _what_befell(layer: LayerComparison) -> tuple[str, str, str]:
    """Return what became of the degenerate nodes of a layer, what they are now, and how many are dead beside others."""
    last, dead, bad = layer.verdicts[-1] or {}, layer.dead[-1] or 0, layer.degenerate[-1] or 0
    if dead == bad:
        return "died", "dead", ""
    if last.get("collapsed", 0) == bad:
        return "collapsed", "collapsed", ""
    return "became degenerate", "degenerate", f" ({dead:,} dead)" if dead else ""


def _at_that_step(comparison: Comparison, place: int) -> str:
    """Return what gradient norm and loss did at a step, where that was much."""
    before, after = comparison.checkpoints[place - 1], comparison.checkpoints[place]
    said = []
    for what, a, b in (
        ("gradient norm", before.gradient_norm, after.gradient_norm), ("loss", before.loss, after.loss),
    ):  # fmt: skip
        if a and b and a > 0 and b > 0 and not 1 / _JUMP < b / a < _JUMP:
            verb, ratio = ("rose", b / a) if b > a else ("fell", a / b)
            said.append(f"{what} {verb} {number(ratio)}×")
    return f", while the {' and the '.join(said)}" if said else ""


def _decline(comparison: Comparison, run: Course, layer: LayerComparison, place: int) -> Iterator[Event]:
    fall = layer.decline
    assert fall is not None
    if len(comparison.checkpoints) < 3:
        return
    clock, pace = clock_of(comparison, run.word), ""
    if fall.half_life is not None:
        every = clock.lasting(fall.half_life, fall.half_life_error)
        pace = f"the half-life of its nodes is {every}"
    if fall.limit is None or fall.crosses_at is None:
        if pace:
            words = f"{_start(layer)} is dying: {pace}."
            yield Event((5, place), "info", words)
        return
    limit = f"the policy's {percent(fall.limit)} of degenerate nodes"
    around = clock.near(fall.crosses_at, fall.crosses_error)
    if fall.crossed:
        words = f"{_start(layer)} crossed {limit} at {around}{'; ' if pace else ''}{pace}."
        yield Event((4, place), "warning", words)
    elif fall.crosses_at - clock.times[-1] <= 10 * (clock.times[-1] - clock.times[0]):
        words = f"At this pace {called(layer.name)} crosses {limit} at {around}{'; ' if pace else ''}{pace}."
        yield Event((4, place), "warning", words)


def _runaways(comparison: Comparison, members: Mapping[str, ByLayer]) -> Iterator[Event]:
    sizes = {layer.name: layer for layer in comparison.layers}
    for code, words in (
        ("ND705", "without bound and turn back from step to step: the learning rate is too large"),
        ("ND704", "without bound along a settled direction"),
    ):
        for place, (name, nodes) in enumerate(members.get(code, {}).items()):
            who = share(len(nodes), sizes[name].nodes)
            verb = _verb("grow", len(nodes))
            words_of_one = words.replace("turn back", "turns back") if len(nodes) == 1 else words
            yield Event((0, place), "error", f"{_start(sizes[name])}: {who} {verb} {words_of_one}.")


def _of_model(comparison: Comparison, run: Course) -> Iterator[Event]:
    fit, marks = comparison.model.fit, comparison.checkpoints
    if fit.state == "not-finite":
        yield Event((0, -1), "error", "The loss or the parameters are not finite at the end.")
    elif fit.state == "diverging":
        first, last = marks[0].parameter_norm, marks[-1].parameter_norm
        yield Event(
            (0, 9),
            "error",
            f"The run diverges: the parameter norm went from {number(first)} to {number(last)}.",
        )
    elif fit.state == "oscillating":
        words = (
            "The run oscillates: it goes to and fro between checkpoints without growing; it is not at rest."
        )
        yield Event((3, -1), "warning", words)
    elif fit.state == "norm-growing":
        grown = percent(fit.norm_growth)
        words = (
            f"The loss has settled, yet the parameters still grow ({grown} over the last half, "
            f"{number(fit.growth_per_doubling)} ± {number(fit.growth_error)} each time the run doubles)."
        )
        yield Event((3, -1), "warning", words)
    elif fit.state == "converged":
        yield Event(
            (6, -1), "good", "The run has converged: neither the loss nor the parameter norm changes."
        )
    losses = [(mark.loss, place) for place, mark in enumerate(marks) if mark.loss is not None]
    if len(losses) > 2 and losses[-1][1] == len(marks) - 1:
        best, at = min(losses)
        if best > 0 and losses[-1][0] > 1.5 * best:
            words = (
                f"The loss rose from {number(best)} at {run.at(at)} to {number(losses[-1][0])} at the end."
            )
            yield Event((3, at), "warning", words)


def _all_is_well(comparison: Comparison, members: Mapping[str, ByLayer]) -> Event:
    """Tell of a run of which there is nothing bad to tell; what could not be judged is not called well."""
    bad = sum(layer.degenerate[-1] or 0 for layer in comparison.layers)
    nodes = sum(layer.nodes for layer in comparison.layers)
    unknown = sum((layer.verdicts[-1] or {}).get("unknown", 0) for layer in comparison.layers)
    if 2 * unknown > nodes:
        words = f"Nothing wrong was seen, but {unknown:,} of {counted(nodes, 'node')} could not be judged."
        return Event((6, 0), "info", words)
    new = sum(len(found) for found in members.get("ND701", {}).values())
    what, more = ("Little", f", {new:,} of them newly") if new else ("Nothing", "")
    words = f"{what} went wrong along the run: {bad:,} of {counted(nodes, 'node')} are degenerate at its end{more}."
    return Event((6, 0), "good", words)


def compared_advice(comparison: Comparison, run: Course) -> tuple[str, ...]:
    """Return what to do, the first thing first."""
    members, marks = _having(comparison), comparison.checkpoints
    advice = []
    start = _beginning(comparison, members)
    lr = next((f" than {number(mark.lr)}" for mark in reversed(marks) if mark.lr), "")
    if start is not None:
        cause = "less weight decay" if "ND703" in members else f"a smaller learning rate{lr}"
        advice.append(f"Go back to {run.at(start - 1)}, the last before this, and train on with {cause}")
    elif "ND705" in members:
        advice.append(f"Train anew from an early checkpoint with a smaller learning rate{lr}")
    if "ND703" in members and start is None:
        advice.append("Lower the weight decay, or take the shrinking layers out of it")
    absorbed = sum(len(nodes) for nodes in members.get("ND702", {}).values())
    if absorbed >= FEW * sum(layer.nodes for layer in comparison.layers):
        which = "it" if absorbed == 1 else f"the {absorbed:,} of them"
        advice.append(f"Do not wait for absorbed nodes: reinitialise or prune {which} (nndiag explain ND702)")
    if comparison.model.fit.state == "norm-growing":
        advice.append("Stop, or regularise: only the confidence still grows (nndiag explain ND707)")
    return tuple(advice)


def _beginning(comparison: Comparison, members: Mapping[str, ByLayer]) -> int | None:
    """Return the checkpoint from which on most of a layer was degenerate, of the first layer, or a node ran away."""
    run = compared_course(comparison)
    starts = [layer.since for layer in run.layers if layer.since]
    for code in ("ND704", "ND705"):
        for nodes in members.get(code, {}).values():
            growths = (node.measures.get("norm_growth", ()) for node in nodes)
            starts += [
                next((i for i, g in enumerate(growth) if i and g is not None and g >= 2), 1)
                for growth in growths
            ]
    return min(starts, default=None)


def _evidence(node: NodeComparison, code: str, name: str) -> float:
    value = next(finding.evidence[name] for finding in node.findings if finding.code == code)
    return float(value) if isinstance(value, int | float) else 0.0


def _start(layer: LayerComparison) -> str:
    words = called(layer.name)
    return _capital(words) if words.startswith(("layer ", "the ")) else words


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _verb(word: str, count: int) -> str:
    return f"{word}s" if count == 1 else word
