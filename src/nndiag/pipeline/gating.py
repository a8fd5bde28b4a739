"""``gate`` for library users, and ``assert_healthy`` for their tests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nndiag.config.policy import Policy, parse_policy
from nndiag.errors import UsageError
from nndiag.records.gate import Verdict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nndiag.pipeline.scanning import Outcome
    from nndiag.records.report import Report

AnyPath = str | os.PathLike[str]
AnyPolicy = Policy | Mapping[str, object] | AnyPath


def gate(
    report: Report | Outcome | Mapping[str, Any] | AnyPath,
    policy: AnyPolicy | None = None,
    baseline: AnyPath | None = None,
) -> Verdict:
    """Decide pass or fail from a report, as ``nndiag gate`` does.

    Args:
        report: a report, what ``nndiag.scan`` returned, the document of one, or the path of its JSON.
        policy: the keys of ``[policy]``, or the path of a file that holds them; where it is not given, the run's own
            over that of the user's project.
        baseline: path of a baseline or of an earlier report.

    Raises:
        UsageError: the policy or the baseline is wrong, or asks for what the report cannot tell.
        InputError: there is no such report.
    """
    from nndiag.gating.baseline import load_baseline
    from nndiag.gating.checking import gate as decide
    from nndiag.records.document import checked, load_document

    path = None
    if isinstance(report, str | os.PathLike):
        path = Path(report)
        document = load_document(path)
    elif isinstance(report, Mapping):
        document = checked(dict(report), "report")
    else:
        from nndiag.records.report import Report

        document = _document(report if isinstance(report, Report) else report.report)
    chosen = _policy(policy, document, path)
    known = None if baseline is None else load_baseline(Path(baseline), chosen)
    return decide(with_course(document, chosen), chosen, known)


def assert_healthy(
    model: nn.Module,
    probe: tuple[Tensor, Tensor] | Tensor,
    policy: AnyPolicy | None = None,
    *,
    loss: str | None = None,
    lr: float | None = None,
) -> None:
    """Assert in a test that a network is healthy on a probe; the model is left as it was.

    Args:
        model: a module.
        probe: ``(x, y)``, samples along the first axis; or ``x`` alone, and then only activations are looked at unless
            the loss needs no targets.
        policy: the keys of ``[policy]``, or a file; where it is not given, no finding may be an error.
        loss: one of the named losses; ``cross_entropy`` for integer targets and ``mse`` for others where not given.
        lr: the learning rate of plain SGD, for what depends on it.

    Raises:
        AssertionError: a check failed; the message says which, where, and by how much.
        UsageError, InputError, ModelError: the network cannot be looked at.
    """
    from nndiag.pipeline.in_memory import diagnose_model, plain_descent
    from nndiag.report.gate import render_gate

    found = _document(diagnose_model(model, probe, loss, plain_descent(lr)))
    from nndiag.gating.checking import gate as decide

    chosen = Policy() if policy is None else _policy(policy, found, None)
    verdict = decide(found, chosen)
    if not verdict.passed:
        raise AssertionError(render_gate(verdict))


def with_course(document: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Return a report with the findings along its run (ND701 to ND708) on its last checkpoint, where a policy forbids
    any.

    Raises:
        UsageError: the report holds one checkpoint, so that it cannot tell.
    """
    if not policy.forbids("ND7"):
        return dict(document)
    checkpoints = list(document["checkpoints"])
    if len(checkpoints) < 2:
        why = "the report holds one checkpoint, and this is about a run"
        raise UsageError("policy forbid ND7", why, "scan the run, or remove the code")
    from nndiag.comparing.judging import compare_run
    from nndiag.comparing.reading import run_of
    from nndiag.pipeline.comparing import selection_of
    from nndiag.rules.diagnose import Selection

    changed = Selection(
        thresholds=selection_of(checkpoints).thresholds
    )  # what is looked for, the policy says
    found = compare_run(run_of(checkpoints), "", selection=changed).model_dump(mode="json")
    last = dict(checkpoints[-1])
    last["nodes"] = [*last["nodes"], *found["nodes"]]
    last["model"] = {
        **last["model"], "findings": [*last["model"].get("findings", ()), *found["model"]["findings"]],
    }  # fmt: skip
    return {**document, "checkpoints": [*checkpoints[:-1], last]}


def _document(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.model_dump_json())
    return found


def _policy(policy: AnyPolicy | None, document: Mapping[str, Any], report: Path | None) -> Policy:
    from nndiag.gating.policies import find_policy

    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Mapping):
        return parse_policy(policy, "policy")
    return find_policy(document, report, None if policy is None else Path(policy), Path.cwd())
