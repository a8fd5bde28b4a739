"""Numbers per node, layer and model, from tensors: the last room that knows torch.

Each level is a file; ``collect`` runs the passes and puts the record together. What a number means (dead,
degenerate, to be pruned) must not come in.
"""

from nndiag.measures.collect import measure
from nndiag.measures.forecast import forecast
from nndiag.measures.plan import Plan, Update
from nndiag.measures.replaying import NonFiniteOutputError

__all__ = ["NonFiniteOutputError", "Plan", "Update", "forecast", "measure"]
