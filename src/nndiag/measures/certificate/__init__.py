"""What a checkpoint is as a point of the loss: a minimum, a saddle or none, and how wide its basin is.

All numbers are of the mean loss over the probe and of all trainable parameters as one vector. The passes of the other
measures, and what they show of single nodes, must not come in.
"""

from nndiag.measures.certificate.certifying import certify, most_passes
from nndiag.measures.certificate.extremes import products_allowed
from nndiag.measures.certificate.objective import trainable
from nndiag.measures.certificate.point import Bounds

__all__ = ["Bounds", "certify", "most_passes", "products_allowed", "trainable"]
