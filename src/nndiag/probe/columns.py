"""The columns of the loss's curvature in the output, all of them at once, where they are few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.errors import InputError
from nndiag.probe.curvature import loss_factor
from nndiag.probe.loss import Loss

NEGLIGIBLE = 1e-15
"""Share of the trace below which a column is nothing but rounding."""


@dataclass(frozen=True)
class Columns:
    """Columns ``s_c``, each shaped like the output, leading ones first.

    ``traces[c]`` is the mean over samples of ``‖s_{n,c}‖²``; ``total`` the mean trace of ``B_n``;
    ``negative`` the mean magnitude of the negative eigenvalues that were left out (a loss that is not
    convex in the output).
    """

    columns: Tensor  # (columns, batch, ...)
    traces: Tensor  # (columns,) float64
    total: float
    negative: float = 0.0


def curvature_columns(loss: Loss, output: Tensor, targets: Tensor | None) -> Columns:
    """Return the columns of the loss's curvature in the output.

    Args:
        loss: the loss.
        output: ``(batch, ...)``.
        targets: needed only where ``loss.curvature_needs_targets``.

    Raises:
        InputError: they are too many to be kept together, or a callable loss has no targets.
    """
    factor = loss_factor(loss, output, targets)
    if bool((factor.ranks > 1).any()):
        why = f"its curvature in {output[0].numel()} outputs per sample has too many columns"
        raise InputError(f"--loss {loss.name}", why, "use --level gradients")
    every = torch.arange(len(output), device=output.device)
    wanted = factor.weights.sum(dim=0) > NEGLIGIBLE * factor.weights.sum()
    wanted[0] = True
    places = torch.nonzero(wanted).flatten()
    columns = []
    for place in places.tolist():
        signs = torch.zeros_like(factor.weights)
        signs[:, place] = 1
        columns.append(factor.combine(signs, every, lambda shape: torch.ones(shape)))
    traces = factor.weights.mean(dim=0)[places]
    return Columns(torch.stack(columns), traces, factor.total, factor.negative)
