"""Significant negative curvature, and the verdict that it gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nndiag.records.measured import LayerMeasures, OptimizerFacts
from nndiag.remedies.actions import action_for
from tests.rules.diagnosing import NODES, at, codes, finding, judged, layer, without


def curved(
    smallest: float, *, folds: tuple[float, ...] | None = None, error: float = 0.0, **changes
) -> LayerMeasures:
    """Return a layer whose node 3 has this smallest eigenvalue, the same in every fold unless said otherwise."""
    quiet = {"gradient_norm": 0.01} | changes
    one = layer(lambda_min=at(3, smallest, 0.0), lambda_max=np.ones(NODES), **quiet)
    by_fold = np.zeros((4, NODES))
    by_fold[:, 3] = smallest if folds is None else folds
    return replace(
        one,
        per_node={**one.per_node, "lambda_min_error": np.full(NODES, error)},
        per_fold={**one.per_fold, "lambda_max": np.ones((4, NODES)), "lambda_min": by_fold},
    )


def test_a_downward_direction_makes_a_saddle() -> None:
    (one,) = judged(curved(-0.8))
    assert codes(one, 3) == ["ND403"]
    assert one.verdicts[3] == "saddle"
    assert one.counts["saddle"] == 1
    assert one.steady[3]
    found = finding(one, 3, "ND403")
    assert found.severity == "warning"
    assert found.evidence["lambda_min"] == -0.8
    assert found.evidence["lambda_min_se"] == 0.0


@pytest.mark.parametrize(("gradient", "severity"), [(0.07, "warning"), (0.09, "info")])
def test_a_slope_that_bends_downward_is_no_saddle_yet(gradient: float, severity: str) -> None:
    """The quadratic model has its saddle a tenth of the node's size away: 0.1 · 0.8 · ‖θ‖ = 0.08 · 0.967."""
    (one,) = judged(curved(-0.8, gradient_norm=gradient))
    assert finding(one, 3, "ND403").severity == severity
    assert one.verdicts[3] == "saddle"


def test_a_saddle_is_not_called_so_without_a_gradient() -> None:
    (one,) = judged(without(curved(-0.8), "gradient_norm", "torque_ratio"))
    assert finding(one, 3, "ND403").severity == "info"


@pytest.mark.parametrize(
    "mild",
    [
        curved(-0.2),  # beside the node's own largest
        curved(-0.8, error=0.6),  # within what the solver may be off
        curved(-0.4, folds=(-2.0, 1.5, 1.5, -2.6)),  # within the noise of the probe
    ],
)
def test_what_is_not_significant_is_healthy(mild: LayerMeasures) -> None:
    (one,) = judged(mild)
    assert codes(one, 3) == []
    assert one.verdicts[3] == "healthy"


def test_curvature_that_is_small_in_its_layer_is_not_significant() -> None:
    small = curved(-0.8)
    curvature = at(3, 0.01, 1.0)
    scaled = {**small.per_node, "lambda_max": curvature, "lambda_min": at(3, -0.01, 0.0)}
    (one,) = judged(replace(small, per_node=scaled))
    assert codes(one, 3) == []


def test_one_that_some_fold_denies_is_unsteady() -> None:
    (one,) = judged(curved(-0.8, folds=(-1.2, -1.0, -0.9, -0.1)))
    assert one.verdicts[3] == "saddle"
    assert not one.steady[3]
    assert all(one.steady[i] for i in range(NODES) if i != 3)


def test_nodes_of_gauss_newton_are_not_judged() -> None:
    mixed = curved(-0.8)
    nothing = np.full(NODES, np.nan)
    nothing[3] = -0.8
    by_fold = np.full((4, NODES), np.nan)
    by_fold[:, 3] = -0.8
    exact = np.arange(NODES) == 3
    mixed = replace(
        mixed, curvature_kind="mixed", exact=exact,
        per_node={**mixed.per_node, "lambda_min": np.where(exact, -0.8, 0.0)},
        per_fold={**mixed.per_fold, "lambda_min": by_fold},
    )  # fmt: skip
    (one,) = judged(mixed)
    assert [one.verdicts[i] for i in (2, 3, 4)] == ["healthy", "saddle", "healthy"]
    assert all(one.steady)
    assert [mixed.kind_of(i) for i in (2, 3)] == ["ggn", "hessian"]


def test_a_node_with_a_way_down_is_on_no_plateau() -> None:
    """Its largest eigenvalue is zero, and it is not flat."""
    base = curved(-0.8)
    quiet = {**base.per_node, "lambda_max": at(3, 0.0, 1.0), "tangent_kernel": at(3, 0.0, 3.0)}
    (one,) = judged(replace(base, per_node=quiet))
    assert "ND401" not in codes(one, 3)
    assert one.verdicts[3] == "saddle"


def test_the_graver_verdict_wins() -> None:
    facts = OptimizerFacts("sgd", lr=0.1)
    (one,) = judged(curved(-0.8, stability_margin=at(3, 1.5, 0.1)), optimizer=facts)
    assert set(codes(one, 3)) == {"ND402", "ND403"}
    assert one.verdicts[3] == "source"
    (two,) = judged(curved(-0.8, weight_norm=at(3, 1e-9, 1.0)))
    assert two.verdicts[3] == "collapsed"


@pytest.mark.parametrize("goal", ["train", "deploy"])
def test_nothing_is_done_to_it(goal) -> None:
    (one,) = judged(curved(-0.8))
    action = action_for(one.by_node[3], goal, is_output=False)
    assert action.kind == "none"
    assert action.reason.endswith("(ND403)")
