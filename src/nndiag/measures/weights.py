"""The weights level: norms, biases and repeated rows, of a layer's parameters alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nndiag.records.measured import Floats

DUPLICATE_TOLERANCE = 1e-6
"""Two rows are one where they differ by less than this share of their norm."""

COMPARABLE_ROWS = 8192
"""Layers with more nodes are not searched for repeated rows."""


WEIGHT_MEASURES = ("weight_norm", "parameter_norm", "nonfinite_parameters", "bias")
"""What the parameters alone say of a node."""


def weight_measures(rows: Tensor, weights: int) -> dict[str, Floats]:
    """Return ``weight_norm``, ``bias``, ``parameter_norm`` and ``nonfinite_parameters`` per node.

    Args:
        rows: ``(nodes, size)``, weights first.
        weights: how many of the entries are weights. One entry more is the node's bias; of several biases (the gates of
            a recurrent unit) none is *the* bias.
    """
    found = {
        "weight_norm": _norm(rows[:, :weights]),
        "parameter_norm": _norm(rows),
        "nonfinite_parameters": (~torch.isfinite(rows)).sum(dim=1),
    }
    if rows.shape[1] == weights + 1:
        found["bias"] = rows[:, -1]
    return {name: numbers(values) for name, values in found.items()}


Pairs = tuple[tuple[int, int], ...]


def duplicate_rows(rows: Tensor, groups: int = 1) -> tuple[Pairs, Pairs]:
    """Return pairs ``(node, earlier node)`` whose weights and biases are equal to rounding, and those of the other
    nodes that are equal with the sign turned.

    Rows of zeros and rows that are not finite repeat nothing; nor do single numbers, nor nodes of different groups,
    which have inputs of their own.
    """
    if rows.shape[1] < 2 or groups >= len(rows):
        return (), ()
    norms = _norm(rows)
    usable = torch.isfinite(norms) & (norms > 0)
    index = torch.nonzero(usable).flatten()
    if len(index) < 2 or len(rows) > COMPARABLE_ROWS:
        return (), ()
    unit = rows[index].double() / norms[index, None]
    cosine = torch.tril(unit @ unit.T, diagonal=-1)
    ratio = norms[index, None] / norms[None, index]
    # ‖a ∓ b‖² / ‖a‖² = 1 + 1/r² ∓ 2cos/r; near r = 1 both parts must be small
    member = index // (len(rows) // groups)
    same = member[:, None] == member[None, :]
    same &= (1 - cosine.abs() < DUPLICATE_TOLERANCE**2 / 2 + 1e-12) & (
        (ratio - 1).abs() < DUPLICATE_TOLERANCE
    )
    equal = first_partners((same & (cosine > 0)).numpy(), index.numpy())
    repeated = {node for node, _ in equal}
    turned = first_partners((same & (cosine < 0)).numpy(), index.numpy())
    return equal, tuple(pair for pair in turned if pair[0] not in repeated)


def first_partners(same: np.ndarray, index: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return for every row of a lower-triangular mask that has an entry the pair with its first column."""
    repeated = np.flatnonzero(same.any(axis=1))
    return tuple((int(index[row]), int(index[int(same[row].argmax())])) for row in repeated)


def numbers(values: Tensor) -> Floats:
    """Return a tensor of any dtype as float64 in numpy."""
    return values.detach().cpu().double().numpy()


def _norm(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows.double(), dim=1)
    return norm
