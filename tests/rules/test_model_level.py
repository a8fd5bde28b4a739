"""The findings about the whole network, on hand-made certificates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nndiag.records.level import Level
from nndiag.records.measured import Certificate, Measured
from nndiag.records.report import Finding
from nndiag.rules.diagnose import Selection, judge, judge_model
from tests.rules.diagnosing import layer

MINIMUM = Certificate(
    kind="strict_minimum", stationary="within_noise", parameters=20, parameter_norm=3.0, loss=0.5,
    gradient_norm=0.19, gradient_noise=0.1, gradient_rounding=1e-6, gradient_groups=32, lambda_max=4.0,
    lambda_min=0.5, lambda_max_error=1e-4, lambda_min_error=1e-4, products=20, converged=True,
)  # fmt: skip
MOVING = replace(MINIMUM, kind="not_stationary", stationary="no", gradient_norm=0.31)
SADDLE = replace(MINIMUM, kind="saddle", lambda_min=-0.2)


def found(certificate: Certificate | None, selection: Selection | None = None) -> tuple[Finding, ...]:
    measured = Measured(Level.CURVATURE, (layer(),), samples=400, has_targets=True, certificate=certificate)
    return judge_model(measured, selection or Selection())


@pytest.mark.parametrize("kind", ["strict_minimum", "weak_minimum", "degenerate", "undetermined"])
def test_a_point_that_is_none_of_both_has_no_finding(kind: str) -> None:
    assert found(replace(MINIMUM, kind=kind)) == ()


def test_without_a_certificate_there_is_none() -> None:
    assert found(None) == ()


def test_a_gradient_beyond_its_noise() -> None:
    (one,) = found(MOVING)
    assert (one.code, one.name, one.severity, one.cause) == ("ND505", "not-stationary", "info", None)
    assert "3.1 times its sampling noise" in one.message
    assert one.evidence == {
        "gradient_norm": 0.31, "gradient_noise": 0.1, "gradient_rounding": 1e-6, "threshold": 0.2,
    }  # fmt: skip


@pytest.mark.parametrize("noise", [None, 0.0])
def test_a_gradient_without_noise(noise: float | None) -> None:
    (one,) = found(replace(MOVING, gradient_noise=noise))
    assert "above rounding" in one.message
    assert one.evidence["threshold"] == noise


def test_negative_curvature_where_the_gradient_is_zero() -> None:
    (one,) = found(SADDLE)
    assert (one.code, one.name, one.severity) == ("ND506", "saddle", "info")
    assert "−0.05 of λ_max" in one.message
    assert one.evidence["threshold"] == pytest.approx(-0.004)
    assert (one.evidence["lambda_min"], one.evidence["lambda_max"]) == (-0.2, 4.0)


def test_a_maximum_says_so() -> None:
    (one,) = found(replace(SADDLE, lambda_max=-0.1))
    assert "maximum" in one.message


def test_they_are_selected_and_ignored_like_others() -> None:
    assert found(SADDLE, Selection(select=("ND2",))) == ()
    assert found(SADDLE, Selection(ignore=("ND5",))) == ()
    assert [one.code for one in found(SADDLE, Selection(select=("ND506",)))] == ["ND506"]


def test_layers_and_nodes_are_judged_as_before() -> None:
    measured = Measured(Level.CURVATURE, (layer(),), samples=400, has_targets=True)
    assert judge(replace(measured, certificate=SADDLE), Selection()) == judge(measured, Selection())


def test_numbers_of_a_gradient_that_is_not_finite_are_no_error() -> None:
    (one,) = found(replace(MOVING, gradient_norm=math.inf))
    assert one.code == "ND505"
