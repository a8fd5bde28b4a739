"""Exact Hessian blocks of nodes where the network is not piecewise linear, from products of second derivatives.

Which layers can have negative curvature at all, which nodes are worth exact products, and the blocks themselves; their
extremes are found by the same solvers as those of Gauss-Newton blocks. What a number means must not come in.
"""

from nndiag.measures.exact.most import most_products
from nndiag.measures.exact.record import ExactLayer, ExactSettings, LayerBound, Refinement, merged
from nndiag.measures.exact.refine import refine

__all__ = ["ExactLayer", "ExactSettings", "LayerBound", "Refinement", "merged", "most_products", "refine"]
