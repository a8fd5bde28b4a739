"""The weights level: norms and biases of a layer's parameters alone."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from nndiag.measures.sketch import NodeRows, Sketch, sketch
from nndiag.records.measured import Floats

WEIGHT_MEASURES = ("weight_norm", "parameter_norm", "nonfinite_parameters", "bias")
"""What the parameters alone say of a node."""


def weight_measures(rows: NodeRows, sketched: Sketch | None = None) -> dict[str, Floats]:
    """Return ``weight_norm``, ``bias``, ``parameter_norm`` and ``nonfinite_parameters`` per node.

    Of several biases (the gates of a recurrent unit) none is *the* bias.

    Args:
        rows: the layer.
        sketched: its sketch, where there is one already.
    """
    seen = sketched or sketch(rows)
    found = {
        "weight_norm": seen.weight_norm,
        "parameter_norm": seen.parameter_norm,
        "nonfinite_parameters": seen.nonfinite,
    }
    if rows.bias is not None:
        found["bias"] = rows.bias
    return {name: numbers(values) for name, values in found.items()}


def first_partners(same: np.ndarray, index: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return for every row of a lower-triangular mask that has an entry the pair with its first column."""
    repeated = np.flatnonzero(same.any(axis=1))
    return tuple((int(index[row]), int(index[int(same[row].argmax())])) for row in repeated)


def numbers(values: Tensor) -> Floats:
    """Return a tensor of any dtype as float64 in numpy."""
    return values.detach().cpu().double().numpy()
