"""Parts of reports, made by hand with short calls."""

from __future__ import annotations

from collections.abc import Sequence

from nndiag.records.report import (
    VERDICTS,
    Action,
    CheckpointFacts,
    CurvatureFacts,
    Diagnosis,
    Finding,
    LayerDiagnosis,
    ModelDiagnosis,
    NodeDiagnosis,
    ProbeFacts,
    Report,
    Timing,
    Unmeasured,
    Verdict,
)


def finding(
    code: str, name: str, message: str, severity: str = "warning", cause: str | None = None, **evidence: float
):
    return Finding(code=code, name=name, severity=severity, message=message, evidence=evidence, cause=cause)


def dead(samples: int) -> tuple[Finding, ...]:
    return (
        finding("ND201", "dead", f"never fires on any of the {samples:,} samples", active_fraction=0.0),
        finding("ND204", "dormant", "0 of the layer's mean activation", cause="ND201", dormancy=0.0),
        finding("ND301", "no-gradient", "no sample's gradient reaches it", cause="ND201", gradient_norm=0.0),
        finding("ND401", "plateau", "no direction relaxes within the horizon", cause="ND201", lambda_max=0.0),
    )


def node(
    layer: str,
    index: int,
    verdict: Verdict = "plateau",
    findings: Sequence[Finding] = (),
    kind: str = "reinitialise",
    reason: str = "dead on all 1,000 samples",
) -> NodeDiagnosis:
    return NodeDiagnosis(
        layer=layer,
        index=index,
        verdict=verdict,
        curvature_kind="hessian",
        measures={"weight_norm": 1.25, "lambda_max": 0.0, "active_fraction": 0.0},
        findings=tuple(findings),
        action=Action(kind=kind, reason=reason),
    )


def layer(
    name: str,
    nodes: int,
    kind: str = "Linear",
    fan_in: int = 64,
    findings: Sequence[Finding] = (),
    measures: dict[str, float | None] | None = None,
    **verdicts: int,
) -> LayerDiagnosis:
    counts = dict.fromkeys(VERDICTS, 0) | verdicts
    counts["healthy"] = nodes - sum(counts.values())
    return LayerDiagnosis(
        name=name,
        kind=kind,
        nodes=nodes,
        fan_in=fan_in,
        parameters=nodes * (fan_in + 1),
        activation="relu",
        verdicts=counts,
        measures=measures or {},
        findings=tuple(findings),
    )


def diagnosis(
    layers: Sequence[LayerDiagnosis],
    nodes: Sequence[NodeDiagnosis] = (),
    path: str = "runs/exp/model.safetensors",
    loss: float | None = 0.231,
    samples: int | None = 1000,
    level: str = "curvature",
    epoch: int | None = None,
    step: int | None = None,
    findings: Sequence[Finding] = (),
    optimizer: dict[str, object] | None = None,
    unmeasured: Sequence[Unmeasured] = (),
) -> Diagnosis:
    curvature = CurvatureFacts(kind="hessian", coverage=1.0, solver="lanczos", converged=True, products=12)
    return Diagnosis(
        checkpoint=CheckpointFacts(
            path=path,
            format="safetensors",
            sha256="0" * 64,
            step=step,
            epoch=epoch,
            parameters=sum(one.parameters for one in layers),
            optimizer=optimizer,
        ),
        probe=None
        if samples is None
        else ProbeFacts(samples=samples, loss="cross_entropy", sha256="1" * 64, folds=2, has_targets=True),
        level=level,
        curvature=curvature if level == "curvature" else None,
        timing=Timing(forward_backward_s=0.01, capture_s=0.02, curvature_s=0.2, total_s=0.423),
        model=ModelDiagnosis(
            loss=loss if samples else None,
            gradient_norm=0.0123 if samples else None,
            findings=tuple(findings),
        ),
        layers=tuple(layers),
        nodes=tuple(nodes),
        unmeasured=tuple(unmeasured),
    )


def report(*checkpoints: Diagnosis) -> Report:
    return Report(nndiag_version="0.1.0", settings={"profile": "default", "seed": 0}, checkpoints=checkpoints)
