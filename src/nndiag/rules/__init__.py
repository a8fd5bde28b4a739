"""The catalogue of findings and the verdicts: what the numbers mean.

``RULES`` is in order of code. Rules read records; torch must not come in, nor the code of the measures.
"""

from nndiag.rules import activations, curvature, gradients, model_level, outputs, stability, weights
from nndiag.rules.base import OF_RUNS, Rule

RULES: tuple[Rule, ...] = (
    *weights.RULES, *activations.RULES, *gradients.RULES, *curvature.RULES, *stability.RULES, *outputs.RULES,
    *model_level.RULES,
)  # fmt: skip

__all__ = ["RULES", "Rule", "is_known"]


def is_known(code: str) -> bool:
    """Return whether a finding, along a run too, has this code or one that begins so."""
    return any(known.startswith(code) for known in (*(rule.code for rule in RULES), *OF_RUNS))
