"""The curvature of the loss in the output, ``B_n = Σ_c s_{n,c} s_{n,c}ᵀ``, as columns to send backwards.

``math``: for cross-entropy ``B = diag(p) − ppᵀ`` (also for log-probabilities under ``nll``: a further
``log_softmax`` changes
nothing), for the mean squared error over M outputs ``B = (2/M) I``, for ``bce_with_logits`` ``B =
diag(σ(1−σ))/M``. Where M is
small, the columns are the eigenvectors of ``B_n`` scaled by the roots of their eigenvalues, the leading
ones first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.errors import InputError
from nndiag.probe.loss import Loss

EIGEN_LIMIT = 32
"""Up to this many outputs per sample the columns are eigenvectors."""

SORTED_LIMIT = 64
"""Above that, so many of the most probable classes of every sample are kept; what is lost shows in the
coverage."""

POSITION_LIMIT = 512
"""The most columns for outputs with positions."""
AUTOGRAD_LIMIT = 256
"""Up to this many outputs per sample a callable's curvature is formed by autograd."""


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
        InputError: a callable loss of too many outputs, or one without targets.
    """
    flat = output.detach().flatten(1).double()
    if loss.form == "identity":
        return _shaped(output, _diagonal(torch.full_like(flat, 2.0 / flat.shape[1])))
    if loss.form == "sigmoid":
        gate = torch.sigmoid(flat)
        return _shaped(output, _diagonal(gate * (1 - gate) / flat.shape[1]))
    if loss.form == "softmax":
        return _shaped(output, _softmax_columns(output.detach().double()))
    return _shaped(output, _eigen_columns(_autograd_hessian(loss, output, targets)))


def _shaped(output: Tensor, columns: Columns) -> Columns:
    stack = columns.columns.to(output.dtype).reshape(-1, *output.shape)
    return Columns(stack, columns.traces, columns.total, columns.negative)


def _measured(stack: Tensor, negative: float = 0.0, total: float | None = None) -> Columns:
    traces = stack.square().sum(dim=2).mean(dim=1)
    return Columns(stack, traces, float(traces.sum()) if total is None else total, negative)


def _diagonal(entries: Tensor) -> Columns:
    """Return the columns of a diagonal ``B`` given as ``(batch, outputs)``: one output each."""
    return _measured(torch.diag_embed(entries.sqrt()).movedim(1, 0))


def _softmax_columns(output: Tensor) -> Columns:
    """Return columns of ``diag(p) − ppᵀ``, per position where the output has several (averaged over them)."""
    batch, classes = output.shape[:2]
    positions = output[0, 0].numel()
    if positions * min(classes, SORTED_LIMIT) > POSITION_LIMIT:
        why = f"its curvature over {positions} positions of {classes} classes needs a backward pass each"
        raise InputError("--loss", why, "use --level gradients")
    p = torch.softmax(output.reshape(batch, classes, positions), dim=1).transpose(
        1, 2
    )  # (batch, positions, C)
    total = float((1 - p.square().sum(dim=2)).mean())
    if classes <= EIGEN_LIMIT:
        stack = _eigen_columns(_categorical(p.reshape(-1, classes))).columns
    else:
        stack = _sorted_columns(p.reshape(-1, classes))
    return _measured(_apart(stack.reshape(-1, batch, positions, classes)), total=total)


def _apart(stack: Tensor) -> Tensor:
    """Give every position columns of its own: one pass over all positions at once would mix them."""
    columns, batch, positions, classes = stack.shape
    apart = stack.new_zeros(columns, positions, batch, classes, positions)
    for position in range(positions):
        apart[:, position, ..., position] = stack[:, :, position] / positions**0.5
    return apart.reshape(columns * positions, batch, classes * positions)


def _categorical(p: Tensor) -> Tensor:
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def _sorted_columns(p: Tensor) -> Tensor:
    """Return ``√p_c (e_c − p)`` of the most probable classes, most probable first, ``(kept, batch,
    classes)``."""
    values, indices = p.topk(SORTED_LIMIT if p.shape[1] > SORTED_LIMIT else p.shape[1], dim=1)
    roots = values.T.sqrt()[:, :, None]
    return (-p[None] * roots).scatter_add(2, indices.T[:, :, None], roots)


def _eigen_columns(matrices: Tensor) -> Columns:
    """Return ``√λ v`` of the positive part of symmetric matrices ``(batch, m, m)``, largest first."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    positive = values.clamp_min(0).flip(1)
    stack = (vectors.flip(2) * positive.sqrt()[:, None, :]).permute(2, 0, 1)
    return _measured(stack, negative=float(-values.clamp_max(0).sum(dim=1).mean()))


def _autograd_hessian(loss: Loss, output: Tensor, targets: Tensor | None) -> Tensor:
    """Return ``∂²ℓ_n/∂f_n²`` as ``(batch, m, m)``, a row of every sample's matrix a backward pass."""
    if targets is None:
        raise InputError(f"--loss {loss.name}", "its curvature needs targets", "give y with the probe")
    count = output[0].numel()
    if count > AUTOGRAD_LIMIT:
        why = f"its curvature in {count} outputs per sample would be formed entry by entry"
        raise InputError(f"--loss {loss.name}", why, "use --level gradients, or a named loss")
    leaf = output.detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss.per_sample(leaf, targets).sum(), leaf, create_graph=True)
    flat = grad.flatten(1)
    rows = []
    for column in range(count):
        if not flat.requires_grad:
            return output.new_zeros(len(output), count, count, dtype=torch.float64)
        (row,) = torch.autograd.grad(flat[:, column].sum(), leaf, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(flat) if row is None else row.flatten(1))
    return torch.stack(rows, dim=1).detach().double()
