"""The certificate of a checkpoint in a few phrases, for every format that people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nndiag.records.report import Basin, BasinRadius, Certificate, Diagnosis
from nndiag.report.numbers import number, plain_number

_KINDS: Mapping[str, str] = {
    "strict_minimum": "strict minimum",
    "weak_minimum": "weak minimum (with flat directions)",
    "saddle": "saddle",
    "degenerate": "degenerate (flat in every direction)",
    "not_stationary": "not stationary",
    "undetermined": "stationary, but minimum or saddle is not settled",
}


def certificate_line(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what kind of point it is, its gradient, the ends of its spectrum and its basin; nothing without one."""
    found = diagnosis.model.certificate
    if found is None:
        return
    yield f"certificate: {_KINDS[found.kind]}"
    yield _gradient(found)
    yield _curvature(found)
    if found.basin is not None:
        yield _basin(found.basin)


def _gradient(found: Certificate) -> str:
    size, noise = found.gradient_norm, found.gradient_noise
    said = f"gradient {number(size)}"
    if found.stationary == "exact":
        return said if size == 0 else f"{said}, zero up to rounding"
    if found.stationary == "within_noise":
        return f"{said}, not told from zero (sampling noise {number(noise)})"
    if not noise or size is None:
        return f"{said}, not zero"
    return f"{said}, {number(size / noise)} times its sampling noise"


def _curvature(found: Certificate) -> str:
    if found.lambda_min is None or found.lambda_max is None:
        return "Hessian not finite"
    doubt = "" if found.converged else f", not converged in {found.products:,} products"
    return f"Hessian from {number(found.lambda_min)} to {number(found.lambda_max)}{doubt}"


def _basin(found: Basin) -> str:
    said = ", ".join(f"{_radius(one)} ({one.direction})" for one in found.radii)
    return f"descent returns from within {said} of the parameters' norm"


def _radius(found: BasinRadius) -> str:
    return plain_number(found.radius) + (" or more" if found.beyond is None and found.radius > 0 else "")
