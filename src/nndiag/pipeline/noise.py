"""What findings are worth whose probe is random numbers: those that rest on the inputs are no errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nndiag.records.report import Finding
from nndiag.rules.diagnose import JudgedLayer

_OF_WEIGHTS = "ND1"
_SAID = "seen on random inputs, not on data"


def on_noise(judged: JudgedLayer) -> JudgedLayer:
    """Return a judged layer in which no error rests on its inputs."""
    by_node = {index: weakened(findings) for index, findings in judged.by_node.items()}
    return replace(judged, by_node=by_node, findings=weakened(judged.findings))


def weakened(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings with every error that rests on inputs made a warning that says so; those of weights stay."""
    return tuple(map(_weakened, findings))


def _weakened(finding: Finding) -> Finding:
    if finding.severity != "error" or finding.code.startswith(_OF_WEIGHTS):
        return finding
    return finding.model_copy(update={"severity": "warning", "message": f"{finding.message} ({_SAID})"})
