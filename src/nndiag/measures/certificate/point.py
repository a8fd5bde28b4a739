"""What kind of point the numbers make a checkpoint: pure arithmetic on a few of them."""

from __future__ import annotations

from dataclasses import dataclass

from nndiag.measures.certificate.noise import Gradient
from nndiag.records.measured import PointKind, Stationary

FLAT_CHANGE = 1e-6
"""A loss is flat in every direction where moving by the norm of the parameters would change less than this share."""
CANCELLATION = 10.0
"""Units of rounding of single samples' gradients that their sum may be off by."""


@dataclass(frozen=True)
class Bounds:
    """How far from zero counts as zero.

    ``signal``: a gradient up to this many standard errors is sampling noise. ``flat``: a curvature up to this share of
    the largest is none.
    """

    signal: float
    flat: float


@dataclass(frozen=True)
class Ends:
    """The extremes of the full Hessian, with residuals; not a number where the curvature is not finite."""

    largest: float
    smallest: float
    largest_error: float
    smallest_error: float
    products: int
    converged: bool

    @property
    def scale(self) -> float:
        """The largest magnitude of an eigenvalue."""
        return max(abs(self.largest), abs(self.smallest))


def rounding_of(gradient: Gradient, ends: Ends, norm: float, eps: float) -> float:
    """Return how large a gradient rounding alone may make: ``ε max(10 rms‖g_k‖, λ ‖θ‖)``.

    The first is what cancels in the sum over samples, the second what rounding the parameters does.

    Args:
        gradient: of the probe.
        ends: of the Hessian.
        norm: ``‖θ‖``.
        eps: the relative rounding of the parameters' type, ``ε``.
    """
    moved = ends.scale * norm if ends.scale < float("inf") else 0.0
    return eps * max(CANCELLATION * gradient.typical, moved)


def stationary(gradient: Gradient, rounding: float, bounds: Bounds) -> Stationary:
    """Return whether the gradient is zero up to rounding, up to sampling noise, or not at all."""
    if gradient.norm <= rounding:
        return "exact"
    if gradient.noise is not None and gradient.norm <= bounds.signal * gradient.noise:
        return "within_noise"
    return "no"


def kind_of(zero: Stationary, ends: Ends, loss: float, norm: float, bounds: Bounds) -> PointKind:
    """Return the kind of a point.

    With ``s = max(|λ_max|, |λ_min|)``: *degenerate* where ``s max(‖θ‖², 1) ≤ 1e-6 |L|``; *saddle* where
    ``λ_min < −flat·s``, which the Ritz value proves whatever its residual, since it lies above ``λ_min`` (a maximum is
    one: there is a way down); *strict minimum* where ``λ_min − residual > flat·s``; *weak minimum* between the two, up
    to the solver's tolerance; *undetermined* where the residual leaves a saddle possible.

    Args:
        zero: whether the gradient is zero.
        ends: of the Hessian.
        loss: of the probe.
        norm: ``‖θ‖``.
        bounds: how far from zero counts as zero.
    """
    if zero == "no":
        return "not_stationary"
    flat = bounds.flat * ends.scale
    if ends.scale * max(norm**2, 1.0) <= FLAT_CHANGE * abs(loss) or ends.scale == 0:
        return "degenerate"
    if ends.smallest < -flat:
        return "saddle"
    if ends.smallest - ends.smallest_error > flat:
        return "strict_minimum"
    if ends.converged or ends.smallest - ends.smallest_error >= -flat:
        return "weak_minimum"
    return "undetermined"
