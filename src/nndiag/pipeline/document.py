"""From numbers, findings and verdicts to the record of one checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nndiag.checkpoint import Checkpoint
from nndiag.measures.weights import WEIGHT_MEASURES
from nndiag.probe.probe import Probe
from nndiag.records import report
from nndiag.records.finite import finite
from nndiag.records.measured import LayerMeasures, Measured, OptimizerFacts
from nndiag.records.packed import pack
from nndiag.records.report import DEGENERATE, VERDICTS
from nndiag.remedies import Goal, action_for, tied
from nndiag.rules.diagnose import JudgedLayer
from nndiag.rules.nodes import absent, single, unobserved
from nndiag.rules.thresholds import FEW_SAMPLES

_OF_THE_UNOBSERVED = frozenset([*WEIGHT_MEASURES, "lookups"])
_STATES = {
    "healthy": "h", "collapsed": "c", "plateau": "p", "source": "s", "saddle": "n", "unknown": "u",
}  # fmt: skip
_OF_DIRECTIONS = frozenset(["torque_ratio", "torque_ratio_mean", "torque_ratio_p10"])
"""Measures of turning, which a node of one weight cannot do."""


def diagnosis(
    checkpoint: Checkpoint,
    parameters: int,
    probe: Probe | None,
    measured: Measured,
    judged: Sequence[JudgedLayer],
    of_model: tuple[report.Finding, ...],
    goal: Goal,
    all_nodes: bool,
) -> report.Diagnosis:
    """Return everything said of one checkpoint as a record."""
    few = measured.samples if (measured.samples or FEW_SAMPLES) < FEW_SAMPLES else None
    layers = tuple(_layer(layer) for layer in judged)
    nodes = tuple(node for layer in judged for node in _nodes(layer, goal, all_nodes, few))
    return report.Diagnosis(
        # waits for the hash of the files, which is computed beside all that comes before
        checkpoint=_checkpoint_facts(checkpoint, parameters, measured.optimizer),
        probe=None if probe is None or measured.samples is None else _probe_facts(probe),
        level=measured.level.label,  # type: ignore[arg-type]
        curvature=_curvature_facts(measured),
        timing=report.Timing(**asdict(measured.timing)),
        model=_model(measured, of_model),
        layers=layers,
        nodes=nodes,
        unmeasured=tuple(report.Unmeasured(name=n, reason=r) for n, r in measured.unmeasured),
    )


def _checkpoint_facts(
    checkpoint: Checkpoint, parameters: int, optimizer: OptimizerFacts | None
) -> report.CheckpointFacts:
    known: dict[str, Any] | None = None
    if optimizer is not None:
        known = {name: value for name, value in asdict(optimizer).items() if value is not None}
    return report.CheckpointFacts(
        path=str(checkpoint.path),
        format=checkpoint.format,
        sha256=checkpoint.sha256,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        parameters=parameters,
        optimizer=known,
        logged=_logged(checkpoint.history),
    )


def _logged(history: Sequence[Mapping[str, float]]) -> report.LoggedLosses | None:
    """Return the last losses in a log, whose rows hold one or the other."""
    training = next((row for row in reversed(history) if "loss" in row), {})
    held_out = next((row for row in reversed(history) if "eval_loss" in row), {})
    if not training and not held_out:
        return None
    steps = [int(row["step"]) if "step" in row else None for row in (training, held_out)]
    return report.LoggedLosses(
        training_loss=training.get("loss"),
        training_step=steps[0],
        eval_loss=held_out.get("eval_loss"),
        eval_step=steps[1],
    )


def _probe_facts(probe: Probe) -> report.ProbeFacts:
    return report.ProbeFacts(
        samples=len(probe),
        loss=probe.loss.name if probe.loss else None,
        sha256=probe.sha256,
        folds=probe.fold_count,
        has_targets=probe.has_targets,
        random=probe.random,
    )


def _curvature_facts(measured: Measured) -> report.CurvatureFacts | None:
    if measured.curvature is None:
        return None
    kinds = Counter(
        layer.kind_of(i)
        for layer in measured.layers
        if "lambda_max" in layer.per_node
        for i in range(layer.nodes)
        if layer.observed is None or layer.observed[i]
    )
    return report.CurvatureFacts(
        **asdict(measured.curvature),
        hessian_nodes=kinds["hessian"],
        ggn_nodes=kinds["ggn"],
        stability_threshold=measured.optimizer.stability_threshold if measured.optimizer else None,
    )


def _model(measured: Measured, findings: tuple[report.Finding, ...]) -> report.ModelDiagnosis:
    found = measured.certificate
    certificate = None
    if found is not None:
        fields = {
            name: finite(value) if isinstance(value, float) else value
            for name, value in asdict(found).items()
        }
        certificate = report.Certificate.model_validate(fields)
    return report.ModelDiagnosis(
        loss=measured.loss, gradient_norm=measured.gradient_norm, findings=findings, certificate=certificate
    )


def _layer(judged: JudgedLayer) -> report.LayerDiagnosis:
    layer = judged.measures
    counts = judged.counts
    return report.LayerDiagnosis(
        name=layer.name,
        kind=layer.kind,
        is_output=layer.is_output,
        nodes=layer.nodes,
        fan_in=layer.fan_in,
        parameters=layer.parameters,
        activation=layer.activation,
        verdicts={verdict: counts[verdict] for verdict in VERDICTS},
        unobserved=_unobserved(judged),
        curvature_kind=layer.curvature_kind,  # type: ignore[arg-type]
        measures={
            name: finite(value)
            for name, value in (*layer.per_layer.items(), *_sharpest(layer))
            if _means_something(layer, name)
        },
        findings=judged.findings,
        every_node=_every_node(judged),
    )


def _unobserved(judged: JudgedLayer) -> int:
    """Return how many nodes have no verdict because the probe never used them, or lacks their class."""
    rows, classes = unobserved(judged.measures), absent(judged.measures)
    if classes is not None:
        return sum(gone and word == "unknown" for gone, word in zip(classes, judged.verdicts, strict=True))
    return 0 if rows is None else int(rows.sum())


def _every_node(judged: JudgedLayer) -> report.EveryNode:
    layer, of_node = judged.measures, judged.measures.per_node
    states = [_STATES[word] for word in judged.verdicts]
    for i, findings in judged.by_node.items():  # a few of perhaps a million nodes
        if judged.verdicts[i] == "plateau" and any(finding.code == "ND201" for finding in findings):
            states[i] = "d"
    for i in np.flatnonzero(of_node["nonfinite_parameters"] > 0).tolist():
        states[i] = "x"
    curved = of_node.get("lambda_max")
    bias = of_node.get("bias")
    return report.EveryNode(
        states="".join(states),
        unsteady=tuple(i for i, steady in enumerate(judged.steady) if not steady),
        parameter_norm=pack(of_node["parameter_norm"]),
        weight_norm=pack(of_node["weight_norm"]),
        bias=None if bias is None else pack(bias),
        lambda_max=None if curved is None else pack(curved),
        direction=None if layer.directions is None else pack(layer.directions, "<f2"),
    )


def _nodes(judged: JudgedLayer, goal: Goal, all_nodes: bool, few: int | None) -> list[report.NodeDiagnosis]:
    layer = judged.measures
    columns = {
        name: values.tolist() for name, values in layer.per_node.items() if _means_something(layer, name)
    }
    unused, whole_layer = unobserved(layer), all(verdict in DEGENERATE for verdict in judged.verdicts)
    why_tied = tied(layer)
    indices = range(layer.nodes) if all_nodes else sorted(judged.by_node)
    found = []
    for i in indices:
        findings = judged.by_node.get(i, ())
        used = unused is None or not unused[i]
        node = report.NodeDiagnosis(
            layer=layer.name,
            index=i,
            verdict=judged.verdicts[i],  # type: ignore[arg-type]
            steady=judged.steady[i],
            curvature_kind=layer.kind_of(i) if used else None,  # type: ignore[arg-type]
            measures={
                name: finite(values[i])
                for name, values in columns.items()
                if used or name in _OF_THE_UNOBSERVED
            },
            findings=findings,
            action=action_for(findings, goal, layer.is_output, whole_layer, few, why_tied),
        )
        found.append(node)
    return found


def _sharpest(layer: LayerMeasures) -> Iterator[tuple[str, float]]:
    """Yield the layer's largest stability margin, where there is one."""
    margin = layer.per_node.get("stability_margin")
    if margin is not None and (known := margin[np.isfinite(margin)]).size:
        yield "stability_margin_max", float(known.max())


def _means_something(layer: LayerMeasures, measure: str) -> bool:
    return not (single(layer) and measure in _OF_DIRECTIONS)
