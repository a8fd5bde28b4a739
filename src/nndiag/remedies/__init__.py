"""What to do about a node: one action each, from its findings and the goal.

Reads findings and verdicts only; carrying an action out, and trying it, is another room's work.
"""

from nndiag.remedies.actions import Goal, action_for
from nndiag.remedies.parts import tied

__all__ = ["Goal", "action_for", "tied"]
