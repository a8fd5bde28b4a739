"""What one checkpoint is and what its numbers rest on, as short phrases for every format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nndiag.records.report import Diagnosis, LayerDiagnosis, LoggedLosses, ProbeFacts
from nndiag.report.course import loss_of
from nndiag.report.numbers import counted, duration, number, percent, plain_number

_KINDS = {"ggn": "Gauss-Newton", "hessian": "Hessian", "mixed": "Hessian or Gauss-Newton"}
_MOST_REASONS = 3


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
    else:
        yield on_what(probe)
        if not probe.has_targets:
            yield "without targets"
    yield from logged_losses([diagnosis.checkpoint.logged])


def logged_losses(logged: Sequence[LoggedLosses | None]) -> Iterator[str]:
    """Yield the losses that the training wrote down itself, at the first checkpoint that has one and at the last:
    ``"logged training loss 2.31 at step 100, 0.42 at step 300"``.
    """
    known = [one for one in logged if one is not None]
    for word, said in (
        ("training loss", [(one.training_loss, one.training_step) for one in known]),
        ("evaluation loss", [(one.eval_loss, one.eval_step) for one in known]),
    ):
        told = list(dict.fromkeys(pair for pair in said if pair[0] is not None))
        ends = told[:1] + told[1:][-1:]
        if ends:
            yield f"logged {word} " + ", ".join(f"{number(loss)}{_at(step)}" for loss, step in ends)


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step:,}"


def on_what(probe: ProbeFacts) -> str:
    """Return on what numbers rest, e.g. ``"on 400 samples"``; noise is called so."""
    return f"on {counted(probe.samples, 'sample')}{' of random numbers' if probe.random else ''}"


def method_line(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield how deep the scan went, how curvature was computed, the optimiser, the folds and the time."""
    yield f"level {diagnosis.level}"
    if (curvature := diagnosis.curvature) is not None:
        kind = _KINDS[curvature.kind]
        if curvature.hessian_nodes and curvature.ggn_nodes:
            kind = (
                f"Hessian of {counted(curvature.hessian_nodes, 'node')}, "
                f"Gauss-Newton of the other {curvature.ggn_nodes:,}"
            )
        kept = f", {percent(curvature.coverage)} of the trace exact, the rest by random signs"
        kept = kept if 0 < curvature.coverage < 1 else ", by random signs" if curvature.coverage == 0 else ""
        yield f"{kind} by {curvature.solver}{kept}{'' if curvature.converged else ', not converged'}"
    if optimizer := diagnosis.checkpoint.optimizer:
        rate, decay = optimizer.get("lr"), optimizer.get("weight_decay") or None
        said = (str(optimizer.get("name") or ""), _setting("lr", rate), _setting("decay", decay))
        yield ", ".join(words for words in said if words)
        yield from _margin(diagnosis)
    if diagnosis.probe is not None and diagnosis.probe.folds > 1:
        yield counted(diagnosis.probe.folds, "fold")
    yield duration(diagnosis.timing.total_s)


def unused_line(diagnosis: Diagnosis) -> str:
    """Return how many nodes of which layers the probe never used; empty where it used all."""
    rows = [f"{one.unobserved:,} of {counted(one.nodes, 'row')} of {one.name}"
            for one in diagnosis.layers if one.unobserved and not one.measures.get("absent_classes")]  # fmt: skip
    said = [f"unused: {_first(rows)} (never looked up by the probe, or padding)"] if rows else []
    said += [
        f"not observed: {_classes(one)} of {one.name} (the probe has no sample of "
        f"{'its class' if one.unobserved == 1 else 'their classes'})"
        for one in diagnosis.layers
        if one.unobserved and one.measures.get("absent_classes")
    ]
    return "; ".join(said)


def _classes(layer: LayerDiagnosis) -> str:
    """Return the outputs of classes that the probe lacks, by their indices where the verdicts tell them."""
    states = "" if layer.every_node is None else layer.every_node.states
    unknown = [str(i) for i, state in enumerate(states) if state == "u"]
    if len(unknown) != layer.unobserved:
        return f"{layer.unobserved:,} of {counted(layer.nodes, 'output')}"
    return f"{'output' if len(unknown) == 1 else 'outputs'} {_first(unknown, most=8)}"


def unmeasured_line(diagnosis: Diagnosis) -> str:
    """Return what was not measured, every reason said once; empty where all was."""
    by_reason: dict[str, list[str]] = {}
    for one in diagnosis.unmeasured:
        by_reason.setdefault(one.reason, []).append(one.name)
    said = [f"{_first(names)} ({why})" for why, names in by_reason.items()]
    return f"not measured: {_first(said, '; ')}" if said else ""


def _first(said: Sequence[str], between: str = ", ", most: int = _MOST_REASONS) -> str:
    more = f"{between}{len(said) - most:,} more" if len(said) > most else ""
    return between.join(said[:most]) + more


def _margin(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield how sharp the sharpest node is beside the largest curvature at which the optimiser is stable."""
    threshold = None if diagnosis.curvature is None else diagnosis.curvature.stability_threshold
    margins = [layer.measures.get("stability_margin_max") for layer in diagnosis.layers]
    known = [margin for margin in margins if margin is not None]
    if known and threshold is not None:
        name = str((diagnosis.checkpoint.optimizer or {}).get("name"))
        seen = ", preconditioned" if name.startswith("adam") else ""
        yield f"sharpest node at {percent(max(known))} of the stability threshold (at λ {number(threshold)}{seen})"


def _setting(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    return f"{name} {plain_number(float(value))}"
