"""The gradients level: what reaches a node from the loss, and what the node moves in the output.

``torque``: the part of ``∇_{w_i} L`` orthogonal to ``w_i`` turns the node, the rest only rescales it.
``influence``: the node's
share of the trace of the empirical neural tangent kernel, ``E_n ‖∂f_n/∂θ_i‖²``; it is estimated by one
backward pass seeded
with independent signs, ``E_s (s·J)² = ‖J‖²``, exactly zero where it is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nndiag.measures.batchview import LayerUse
from nndiag.measures.signs import SampleSigns
from nndiag.measures.weights import numbers
from nndiag.records.measured import Floats
from nndiag.replay.jacobian import squared_norms
from nndiag.replay.kinds import Layer

LEAST_DRAWS = 64
"""Samples times draws of signs that an estimate of the influence rests on at least."""


class GradientSums:
    """Sums over the samples of one layer, ``(nodes,)`` float64: squares of gradients at its output and of its
    own."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        zeros = torch.zeros(layer.nodes, dtype=torch.float64)
        self._sums: dict[str, Tensor] = {}
        self._zeros = zeros

    def add(
        self,
        use: LayerUse,
        inputs: Sequence[Tensor],
        from_loss: Sequence[Tensor] | None,
        from_outputs: Sequence[Sequence[Tensor]],
    ) -> None:
        """Add a batch: gradients at the layer's outputs, of the losses of single samples and of seeded outputs."""
        if from_loss is not None:
            self._add("loss_reach", _reach(use, from_loss))
            self._add("loss_squares", _squares(use, inputs, from_loss))
        for g in from_outputs:
            self._add("output_reach", _reach(use, g))
            self._add("output_squares", _squares(use, inputs, g))

    def add_jacobians(self, from_loss: Tensor | None, from_outputs: Sequence[Tensor]) -> None:
        """Add some samples by their Jacobians, each ``(batch, nodes, size)``; reach is then that of the parameters."""
        for name, rows in (("loss", from_loss), *(("output", rows) for rows in from_outputs)):
            if rows is not None:
                squares = rows.double().square().sum(dim=(0, 2))
                self._add(f"{name}_reach", squares)
                self._add(f"{name}_squares", squares)

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, self._zeros) + values.cpu()

    def mean(self, name: str, samples: int) -> Floats | None:
        """Return a sum divided by the number of samples; ``None`` where it was not taken."""
        return numbers(self._sums[name] / samples) if name in self._sums else None


def _reach(use: LayerUse, gradients: Sequence[Tensor]) -> Tensor:
    """Return ``Σ_n ‖g_n‖²`` of the gradients at each node's own outputs."""
    total = gradients[0].new_zeros(use.layer.nodes, dtype=torch.float64)
    for share, g in zip(use.shares, gradients, strict=True):
        total += share.kind.reach(share, g)
    return total


def _squares(use: LayerUse, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    return squared_norms(use.layer, use.parts(inputs, gradients)).double().sum(dim=0)


def influence_seeds(output: Tensor, samples: int, signs: SampleSigns, first: int = 0) -> list[Tensor]:
    """Return seeds ``s`` of backward passes with ``Σ E (s·J)² = ‖J‖²`` for the outputs of every sample.

    On few samples chance could cancel one sign against another, so several draws are taken, or each output by itself
    where that takes no more passes.

    Args:
        output: ``(batch, ...)``.
        samples: how many samples the whole probe has.
        signs: their source.
        first: place of the first sample in the probe, to which its signs belong.
    """
    outputs = output[0].numel()
    draws = -(-LEAST_DRAWS // samples)
    if outputs <= draws:
        units = torch.eye(outputs).reshape(outputs, 1, *output.shape[1:])
        return [unit.expand(output.shape).to(output) for unit in units]
    owners = torch.arange(first, first + len(output), device=output.device)
    drawn = (signs.draw(owners, place, outputs).reshape(output.shape) for place in range(draws))
    return [one.to(output) / draws**0.5 for one in drawn]


def torque_of_products(along: Tensor, size: Tensor, norm: Tensor, whole: Tensor) -> dict[str, Floats]:
    """Return what ``mean_gradient_measures`` does from inner products, each ``(nodes,)``.

    ``torque_ratio = √(1 − (g·w)²/(‖g‖²‖w‖²))``: of products in single precision, nothing below 1e-3 can be told from 0.

    Args:
        along: ``g·w`` of the weights.
        size: ``‖g‖²`` of the weights.
        norm: ``‖w‖²``.
        whole: ``‖g‖²`` of weights and biases.
    """
    cosine = along.square() / (size * norm).clamp_min(torch.finfo(norm.dtype).tiny)
    torque = (1 - cosine).clamp_min(0).sqrt()
    return {
        "gradient_norm": numbers(whole.sqrt()),
        "torque_ratio": numbers(torch.where(size > 0, torque, torch.nan)),
    }


def mean_gradient_measures(rows: Tensor, gradient: Tensor, weights: int) -> dict[str, Floats]:
    """Return ``gradient_norm`` and ``torque_ratio`` per node from the gradient of the mean loss.

    ``torque_ratio = ‖g − (g·w)w/‖w‖²‖ / ‖g‖`` on the weights without the bias; NaN where ``g`` is zero.

    Args:
        rows: parameters, ``(nodes, size)``.
        gradient: ``∂L/∂rows``.
        weights: how many of the entries of a row are weights; biases follow.
    """
    g = gradient.double()
    g_weights, w = g[:, :weights], rows.double()[:, :weights]
    norm = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    direction = torch.where(
        norm > 0, w / norm.clamp_min(torch.finfo(torch.float64).tiny), torch.zeros_like(w)
    )
    along = (g_weights * direction).sum(dim=1, keepdim=True)
    across = torch.linalg.vector_norm(g_weights - along * direction, dim=1)
    return {
        "gradient_norm": numbers(torch.linalg.vector_norm(g, dim=1)),
        "torque_ratio": numbers(across / torch.linalg.vector_norm(g_weights, dim=1)),
    }


def gradient_measures(
    sums: GradientSums, samples: int, mean: Mapping[str, Floats], preactivation_std: Floats | None
) -> dict[str, Floats]:
    """Return the measures per node that rest on gradients of single samples.

    ``gradient_spread² = E‖g_n‖² − ‖E g_n‖²``, ``gradient_signal = ‖E g_n‖ / spread``, ``gradient_reach² =
    E‖∂ℓ_n/∂z‖²``,
    ``output_reach² = E‖∂f_n/∂z‖²``, ``sensitivity = output_reach · std(z)``, ``tangent_kernel =
    E‖∂f_n/∂θ‖²``.
    """
    found: dict[str, Floats] = {}
    reach, squares = sums.mean("loss_reach", samples), sums.mean("loss_squares", samples)
    if reach is not None and squares is not None:
        norm = mean["gradient_norm"]
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.sqrt(np.maximum(squares - norm**2, 0))
            found["gradient_signal"] = norm / spread
        found["gradient_reach"] = np.sqrt(reach)
        found["gradient_spread"] = spread
    reach, squares = sums.mean("output_reach", samples), sums.mean("output_squares", samples)
    if reach is not None and squares is not None:
        found["output_reach"] = np.sqrt(reach)
        found["tangent_kernel"] = squares
        if preactivation_std is not None:
            found["sensitivity"] = found["output_reach"] * preactivation_std
    return found


def torque_of_layer(torque: Floats) -> dict[str, float]:
    """Return mean and 10th percentile of the torque over the nodes that have a gradient."""
    present = torque[np.isfinite(torque)]
    if present.size == 0:
        return {}
    return {
        "torque_ratio_mean": float(present.mean()),
        "torque_ratio_p10": float(np.quantile(present, 0.1)),
    }
