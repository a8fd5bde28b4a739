"""Power iteration against Lanczos and dense."""

from __future__ import annotations

import numpy as np

from benchmarks.markdown import rows, section
from benchmarks.problems import mlp_case
from benchmarks.setting import Setting, timed
from benchmarks.tables.error import errors_of
from nndiag.measures import Plan
from nndiag.records.level import Level


def table(setting: Setting) -> list[str]:
    """Compare the solvers on one network with exact columns."""
    widths = (64, 48, 48, 10) if setting.quick else (256, 128, 128, 10)
    case = mlp_case(widths, 300, setting.device, 20 if setting.quick else 60)
    body = []
    for solver in ("lanczos", "power", "dense"):
        setting.say(solver)
        plan = Plan(Level.CURVATURE, solver=solver, noise=0.0)
        run, spent = timed(case, plan, setting.repeats)
        assert run.curvature is not None
        (errors,) = errors_of(case, [plan], limit=max(widths))
        marks = [
            f"{float(np.quantile(errors[name], 0.99)):.1e} / {errors[name].max():.1e}"
            for name in ("lambda_max", "lambda_min")
        ]
        converged = "yes" if run.curvature.converged else "no"
        body.append([solver, str(run.curvature.products), f"{spent.units:.0f}", *marks, converged])
    head = ("solver", "products", "units", "error of λ_max", "error of λ_min", "converged")
    return [
        *section(
            "Solvers",
            f"{case.name} on {len(case.probe)} samples, exact columns. Products of the layer that took most; errors "
            "relative to the dense λ_max of the node, 99 % / largest over all living nodes.",
        ),
        *rows(head, body),
    ]
