"""What to do about a node: one action each, from its findings and the goal.

Reads findings and verdicts only; carrying an action out, and trying it, is another room's work.
"""

from nndiag.remedies.actions import Goal, action_for
from nndiag.remedies.parts import tied
from nndiag.remedies.plan import Treatment, plan

__all__ = ["Goal", "Treatment", "action_for", "plan", "tied"]
