"""The catalogue of findings and the verdicts: what the numbers mean.

``RULES`` is in order of code. Rules read records; torch must not come in, nor the code of the measures.
"""

from nndiag.rules import activations, curvature, gradients, model_level, outputs, stability, weights
from nndiag.rules.base import Rule

RULES: tuple[Rule, ...] = (
    *weights.RULES, *activations.RULES, *gradients.RULES, *curvature.RULES, *stability.RULES, *outputs.RULES,
    *model_level.RULES,
)  # fmt: skip

__all__ = ["RULES", "Rule"]
