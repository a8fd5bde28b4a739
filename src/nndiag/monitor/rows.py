"""What the parameters of a layer and their gradients say of its nodes, taken in one pass over each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.measures.directions import directions_of, unit
from nndiag.measures.gradients import torque_of_products
from nndiag.measures.record import base_record, weights_record
from nndiag.measures.sketch import ORDINARY, NodeRows
from nndiag.measures.weights import numbers
from nndiag.monitor.scratch import Scratch
from nndiag.records.measured import Floats, LayerMeasures
from nndiag.replay.kinds import Layer

TILE = 1 << 15
"""Numbers taken at a time: memory for so few is at hand, and products and sums of them stay in the cache."""


@dataclass(frozen=True)
class _Graded:
    """Of the gradient: its norms and its products with the weights, per weight, and its entries of biases."""

    norms: tuple[Tensor, ...]
    along: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


@dataclass(frozen=True)
class Products:
    """Inner products of the rows of one layer, ``(nodes,)`` per weight; ``turned`` is the sketch of their directions.

    ``exact`` stands in for what was taken in single precision where that does not hold the numbers.
    """

    layer: Layer
    norms: tuple[Tensor, ...]
    turned: Tensor
    biases: tuple[Tensor, ...]
    graded: _Graded | None
    exact: LayerMeasures | None = None

    def record(self) -> LayerMeasures:
        """Return what the parameters say."""
        if self.exact is not None:
            return self.exact
        squares = _squares(self.norms)
        norm = squares.sqrt()
        node = {
            "weight_norm": norm,
            "parameter_norm": (squares + _row_squares(self.biases)).sqrt(),
            "nonfinite_parameters": torch.zeros_like(norm),
        }
        if len(self.biases) == 1 and self.biases[0].shape[1] == 1:
            node["bias"] = self.biases[0][:, 0]
        directions = unit(self.turned.cpu().double(), norm, self.layer.weight_size)
        return base_record(self.layer, {name: numbers(values) for name, values in node.items()}, directions)

    def gradient_measures(self) -> dict[str, Floats] | None:
        """Return what the gradient says, ``None`` where there is none."""
        if self.graded is None:
            return None
        size = _squares(self.graded.norms)
        along = torch.stack([one.cpu().double() for one in self.graded.along]).sum(dim=0)
        return torque_of_products(along, size, _squares(self.norms), size + _row_squares(self.graded.biases))

    def gradient_square(self) -> float:
        """Return ``‖g‖²`` of the whole layer, 0 where there is no gradient."""
        if self.graded is None:
            return 0.0
        return float((_squares(self.graded.norms) + _row_squares(self.graded.biases)).sum())


def products_of(
    layers: Sequence[Layer], named: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> list[Products]:
    """Return the products of some layers' rows, of which later changes change nothing; under ``torch.no_grad``.

    Args:
        layers: the layers.
        named: parameters by name.
        gradients: of some of them, by the same names.
    """
    scratch = Scratch()
    taken = [_products(layer, named, gradients, scratch) for layer in layers]
    if not taken or _ordinary(torch.cat([norm for one in taken for norm in one.norms])):
        return taken
    return [one if _ordinary(torch.cat(one.norms)) else _exactly(one, named) for one in taken]


def _products(
    layer: Layer, named: Mapping[str, Tensor], gradients: Mapping[str, Tensor], scratch: Scratch
) -> Products:
    weights = [_single(slot.rows(named[slot.parameter])) for slot in layer.weights]
    turned, before = [], 0
    for rows in weights:
        turned.append(rows @ directions_of(before, rows.shape[1], layer.weight_size, rows.dtype, rows.device))
        before += rows.shape[1]
    graded = None
    if all(name in gradients for name in layer.names):
        of_weights = [_single(slot.rows(gradients[slot.parameter])) for slot in layer.weights]
        graded = _Graded(
            _norms(of_weights),
            tuple(_dot(g, w, scratch) for g, w in zip(of_weights, weights, strict=True)),
            tuple(slot.rows(gradients[slot.parameter]).clone() for slot in layer.biases),
        )
    biases = tuple(slot.rows(named[slot.parameter]).clone() for slot in layer.biases)
    return Products(layer, _norms(weights), sum(turned[1:], turned[0]), biases, graded)


def _exactly(taken: Products, named: Mapping[str, Tensor]) -> Products:
    rows = NodeRows.of(taken.layer, named)
    exact = weights_record(taken.layer, rows, repetitions=False)
    return Products(taken.layer, taken.norms, taken.turned, taken.biases, taken.graded, exact)


def _dot(one: Tensor, other: Tensor, scratch: Scratch) -> Tensor:
    """Return the inner products of rows, a tile at a time."""
    step = max(TILE // max(one.shape[1], 1), 1)
    tiles = zip(torch.split(one, step), torch.split(other, step), strict=True)
    found = [torch.mul(a, b, out=scratch.like(a)).sum(dim=1) for a, b in tiles]
    return found[0] if len(found) == 1 else torch.cat(found)


def _norms(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.vector_norm(rows, dim=1) for rows in parts)


def _ordinary(norms: Tensor) -> bool:
    """Whether single precision holds the squares behind all these norms."""
    least, most = (value.item() for value in norms.aminmax())
    return ORDINARY[0] < least and most < ORDINARY[1]


def _squares(norms: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.cpu().double().square() for one in norms]).sum(dim=0)


def _row_squares(biases: Sequence[Tensor]) -> Tensor:
    found = [one.cpu().double().square().sum(dim=1) for one in biases]
    return torch.stack(found).sum(dim=0) if found else torch.zeros((), dtype=torch.float64)


def _single(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()
