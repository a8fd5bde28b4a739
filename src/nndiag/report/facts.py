"""What one checkpoint is and what its numbers rest on, as short phrases for every format."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag.records.report import Diagnosis
from nndiag.report.course import loss_of
from nndiag.report.numbers import counted, duration, number, percent, plain_number

_KINDS = {"ggn": "Gauss-Newton", "hessian": "Hessian", "mixed": "Hessian or Gauss-Newton"}


def place(diagnosis: Diagnosis) -> str:
    """Return where in training it was written, e.g. ``"epoch 3, step 4,000"``; empty if unknown."""
    facts = diagnosis.checkpoint
    known = [("epoch", facts.epoch), ("step", facts.step)]
    return ", ".join(f"{word} {value:,}" for word, value in known if value is not None)


def numbers_line(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the loss, the gradient norm and what they rest on."""
    probe, loss = diagnosis.probe, loss_of(diagnosis)
    if loss is not None:
        kind = f" ({probe.loss})" if probe and probe.loss else ""
        yield f"loss {number(loss)}{kind}"
    if diagnosis.model.gradient_norm is not None:
        yield f"gradient norm {number(diagnosis.model.gradient_norm)}"
    if probe is None:
        yield "no probe: judged from the weights alone"
        return
    yield f"on {counted(probe.samples, 'sample')}"
    if not probe.has_targets:
        yield "without targets"


def method_line(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield how deep the scan went, how curvature was computed, the optimiser, the folds and the time."""
    yield f"level {diagnosis.level}"
    if (curvature := diagnosis.curvature) is not None:
        kind = _KINDS[curvature.kind]
        kept = f", {percent(curvature.coverage)} of the trace exact" if curvature.coverage < 1 else ""
        yield f"{kind} by {curvature.solver}{kept}{'' if curvature.converged else ', not converged'}"
    if optimizer := diagnosis.checkpoint.optimizer:
        yield (str(optimizer.get("name") or "") + _rate(optimizer.get("lr"))).removeprefix(", ")
    if diagnosis.probe is not None and diagnosis.probe.folds > 1:
        yield counted(diagnosis.probe.folds, "fold")
    yield duration(diagnosis.timing.total_s)


def _rate(lr: object) -> str:
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not math.isfinite(lr):
        return ""
    return f", lr {plain_number(float(lr))}"
