"""From arrays to the record of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from nndiag.comparing.catalogue import RULES
from nndiag.comparing.changes import changes
from nndiag.comparing.decline import decline_of
from nndiag.comparing.motion import Motion, motion_of
from nndiag.comparing.rules import RunContext, since_when
from nndiag.comparing.run import STATES, Bytes, Floats, LayerRun, Run
from nndiag.comparing.settling import Settling, settling
from nndiag.config.policy import Policy
from nndiag.records import comparison as record
from nndiag.records.finite import finite
from nndiag.records.report import VERDICTS, Finding, Verdict
from nndiag.rules.base import Hit, Rule
from nndiag.rules.diagnose import Selection
from nndiag.rules.thresholds import thresholds

_KEPT = ("torque_ratio_mean", "torque_ratio_p10", "effective_rank", "stability_margin_max", "dead_data_fraction",
         "dormant_fraction", "lambda_max_median", "weight_norm_median")  # fmt: skip
_CAUSES = {"ND701": ("ND703", "ND704", "ND705"), "ND702": ("ND701",)}
"""Codes of what a finding of the same node follows from, the deepest first."""


def compare_run(
    run: Run, version: str, *, policy: Policy | None = None, selection: Selection | None = None,
    all_nodes: bool = False, settings: Mapping[str, object] | None = None,
) -> record.Comparison:  # fmt: skip
    """Return how the nodes of a run move, and what is wrong with that.

    Args:
        run: two checkpoints or more.
        version: of nndiag, for the document.
        policy: for the time at which a dying layer crosses its ``max_degenerate_fraction``.
        selection: the findings that are wanted, and changed thresholds.
        all_nodes: list nodes without findings too.
        settings: more for the document's ``settings``.

    Raises:
        UsageError: a changed threshold does not exist.
    """
    wanted = selection or Selection()
    values = thresholds(wanted.thresholds)
    rules = tuple(rule for rule in RULES if wanted.wants(rule.code))
    ends = settling(run, values)
    context = RunContext(run, values, ends)
    of_model = tuple(
        _finding(rule, hit, ()) for rule in rules if rule.on == "model" for hit in _hits(rule, run, context)
    )
    layers: list[record.LayerComparison] = []
    nodes: list[record.NodeComparison] = []
    for layer in run.layers:
        motion = motion_of(layer, run)
        limit = None if policy is None else policy.of(layer.name).max_degenerate_fraction
        layers.append(_layer(layer, run, limit))
        nodes += _nodes(layer, motion, context, rules, all_nodes)
    return record.Comparison(
        nndiag_version=version,
        settings={"clock": run.clock, **(settings or {})},
        checkpoints=_checkpoints(run),
        model=record.ModelComparison(findings=of_model, fit=_fit(ends)),
        layers=tuple(layers),
        nodes=tuple(nodes),
    )


def _hits(rule: Rule, subject: LayerRun | Run, context: RunContext) -> Iterator[Hit]:
    """Ask a rule; those along a run know of the run what others know of a measurement."""
    return rule.find(subject, context)  # type: ignore[arg-type]


def _checkpoints(run: Run) -> tuple[record.ComparedCheckpoint, ...]:
    return tuple(
        record.ComparedCheckpoint(
            path=mark.path, step=mark.step, epoch=mark.epoch, loss=mark.loss, gradient_norm=mark.gradient_norm,
            parameter_norm=finite(norm), sha256=mark.sha256, level=mark.level, lr=mark.lr,
            random_probe=mark.random_probe, logged=mark.logged,
        )
        for mark, norm in zip(run.marks, run.parameter_norms.tolist(), strict=True)
    )  # fmt: skip


def _fit(ends: Settling) -> record.Fit:
    return record.Fit(
        state=ends.word, loss_change=finite(ends.loss_change), norm_growth=finite(ends.norm_growth),
        growth_per_doubling=finite(ends.growth_per_doubling), growth_error=finite(ends.growth_error),
    )  # fmt: skip


def _layer(layer: LayerRun, run: Run, limit: float | None) -> record.LayerComparison:
    counts = layer.degenerate.sum(axis=1).tolist()
    decline = decline_of(layer, run, limit)
    return record.LayerComparison(
        name=layer.name,
        kind=layer.kind,
        nodes=layer.nodes,
        degenerate=_where_present(counts, layer),
        dead=_where_present((layer.states == ord("d")).sum(axis=1).tolist(), layer),
        verdicts=tuple(
            _verdicts(row) if there else None for row, there in zip(layer.states, layer.present, strict=True)
        ),
        transitions=_transitions(layer, 0, -1),
        steps=tuple(
            record.Step(to=place, transitions=moved)
            for place in range(1, len(run.marks))
            if (moved := _transitions(layer, place - 1, place))
        ),
        measures={name: _course(layer.measures[name]) for name in _KEPT if name in layer.measures},
        change={name: record.Change(first=a, last=b, trend=trend) for name, a, b, trend in changes(layer)},
        decline=None if decline is None else record.Decline(**vars(decline)),
    )


def _where_present(counts: list[int], layer: LayerRun) -> tuple[int | None, ...]:
    return tuple(count if there else None for count, there in zip(counts, layer.present, strict=True))


def _verdicts(states: Bytes) -> dict[Verdict, int]:
    letters, counts = np.unique(states, return_counts=True)
    found: Counter[Verdict] = Counter()
    for letter, count in zip(letters.tolist(), counts.tolist(), strict=True):
        found[STATES.get(chr(letter), "unknown")] += count  # type: ignore[index]
    return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}


def _transitions(layer: LayerRun, first: int, last: int) -> dict[str, int]:
    """Return how many nodes changed from one verdict to another between two checkpoints."""
    before, after = layer.states[first], layer.states[last]
    moved = np.flatnonzero(before != after)
    pairs: Counter[str] = Counter()
    for a, b in zip(before[moved].tolist(), after[moved].tolist(), strict=True):
        was, now = STATES.get(chr(a)), STATES.get(chr(b))
        if was != now and was is not None and now is not None:
            pairs[f"{was}->{now}"] += 1
    return dict(sorted(pairs.items()))


def _nodes(
    layer: LayerRun, motion: Motion, context: RunContext, rules: Iterable[Rule], all_nodes: bool
) -> Iterator[record.NodeComparison]:
    found: dict[int, list[tuple[Rule, Hit]]] = {}
    for rule in rules:
        if rule.on == "node":
            for hit in _hits(rule, layer, context):
                assert hit.index is not None
                found.setdefault(hit.index, []).append((rule, hit))
    since = since_when(layer)
    count = len(context.run.marks)
    for i in range(layer.nodes) if all_nodes else sorted(found):
        held = found.get(i, [])
        codes = tuple(rule.code for rule, _ in held)
        ever = np.flatnonzero(layer.degenerate[:, i])
        back = int(ever[-1]) + 1 if ever.size and ever[-1] < count - 1 else None
        yield record.NodeComparison(
            layer=layer.name,
            index=i,
            verdicts=tuple(layer.verdicts(i)),  # type: ignore[arg-type]
            degenerate_since=int(since[i]) if since[i] < count else None,
            recovered_at=back,
            measures={name: tuple(values) for name, values in motion.of(i).items()},
            findings=tuple(_finding(rule, hit, codes) for rule, hit in held),
        )


def _finding(rule: Rule, hit: Hit, present: tuple[str, ...]) -> Finding:
    """Return the finding as a record; an error that the run did not bring about is a warning."""
    cause = next((code for code in _CAUSES.get(rule.code, ()) if code in present), None)
    severity = "warning" if rule.severity == "error" and not hit.sure else rule.severity
    return Finding(
        code=rule.code, name=rule.name, severity=severity, message=hit.message,
        evidence={name: _plain(value) for name, value in hit.evidence.items()}, cause=cause,
    )  # fmt: skip


def _course(values: Floats) -> record.Course:
    return tuple(finite(value) for value in values.tolist())


def _plain(value: float | int | str | bool | None) -> float | int | str | bool | None:
    return finite(value) if isinstance(value, float) else value
