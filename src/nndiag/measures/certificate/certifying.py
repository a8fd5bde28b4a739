"""Certifying a checkpoint: gradient, curvature, kind and basin, one after the other."""

from __future__ import annotations

import torch
from torch import nn

from nndiag.measures.certificate.basin import basin, passes_allowed
from nndiag.measures.certificate.extremes import hessian_ends
from nndiag.measures.certificate.noise import gradient_noise
from nndiag.measures.certificate.objective import Objective, trainable
from nndiag.measures.certificate.point import Bounds, kind_of, rounding_of, stationary
from nndiag.measures.hvp import HessianProducts
from nndiag.measures.plan import Progress
from nndiag.probe.probe import Probe
from nndiag.records.measured import Certificate, OptimizerFacts
from nndiag.replay.state import undisturbed


def certify(
    model: nn.Module,
    probe: Probe,
    bounds: Bounds,
    seed: int = 0,
    optimizer: OptimizerFacts | None = None,
    progress: Progress = lambda *_: None,
) -> Certificate:
    """Say what the checkpoint is as a point of the probe's mean loss, over all trainable parameters together.

    Costs one pass forward and backward over the probe, at most 64 products with the Hessian, and for a minimum at most
    600 more passes for its basin (1,200 where the learning rate is half of 1/λ_max or less). Memory: one vector of all
    parameters a product, as many as 2 GiB hold, but at least eight.

    Args:
        model: with the weights to examine, which runs on the probe; left exactly as it was.
        probe: samples, targets and loss.
        bounds: how far from zero counts as zero.
        seed: of every random choice.
        optimizer: the update rule; the learning rate of plain SGD is that of the basin's descent.
        progress: told what is being done.

    Raises:
        InputError: the probe has no loss or no targets, or they do not fit.
        ModelError: an operation of the model has no second derivative.
    """
    names = trainable(model)
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(model, seed):
        hessian = HessianProducts(model, probe, names)
        objective = Objective(model, probe, names)
        progress("certificate: gradient", 0, 1)
        gradient = gradient_noise(objective, generator)
        ends, vectors = hessian_ends(
            hessian, generator, lambda done, most: progress("certificate: curvature", done, 2 * most)
        )
        del hessian  # and the graphs that it keeps, which belong to weights that now move
        origin = objective.point()
        norm = float(origin.double().norm())
        rounding = rounding_of(gradient, ends, norm, torch.finfo(origin.dtype).eps)
        zero = stationary(gradient, rounding, bounds)
        kind = kind_of(zero, ends, gradient.loss, norm, bounds)
        found = None
        if kind in ("strict_minimum", "weak_minimum"):
            found = basin(
                objective, vectors, ends.largest, _plain_rate(optimizer), generator,
                lambda done, most: progress("certificate: basin", most + done, 2 * most),
            )  # fmt: skip
    return Certificate(
        kind=kind,
        stationary=zero,
        parameters=len(origin),
        parameter_norm=norm,
        loss=gradient.loss,
        gradient_norm=gradient.norm,
        gradient_noise=gradient.noise,
        gradient_rounding=rounding,
        gradient_groups=gradient.groups,
        lambda_max=ends.largest,
        lambda_min=ends.smallest,
        lambda_max_error=ends.largest_error,
        lambda_min_error=ends.smallest_error,
        products=ends.products,
        converged=ends.converged,
        basin=found,
    )


def most_passes(optimizer: OptimizerFacts | None) -> int:
    """Return the most passes forward and backward over the probe, products with the Hessian not counted."""
    return 1 + passes_allowed(_plain_rate(optimizer) is not None)


def _plain_rate(optimizer: OptimizerFacts | None) -> float | None:
    """Return the learning rate of SGD without momentum; under any other rule the same number means other steps."""
    if optimizer is None or optimizer.is_adam or optimizer.momentum or not optimizer.lr:
        return None
    return optimizer.lr
