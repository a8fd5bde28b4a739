"""Learning rates of layers: what to suggest for nodes that a rate throws out, or that it does not move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from nndiag.records.healing import Suggestion
from nndiag.records.report import Diagnosis, LayerDiagnosis, NodeDiagnosis
from nndiag.remedies.parts import ONE_OF_SEVERAL
from nndiag.remedies.plan import Treatment

BELOW_STABLE = 0.5
"""Share of the largest stable rate that is suggested: curvature grows while a network trains."""
_CLASSES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def suggest(diagnosis: Diagnosis, treatments: Iterable[Treatment]) -> tuple[Suggestion, ...]:
    """Return what treatments that are only advice come to, one suggestion for each layer and kind.

    For sources the rate is half of the largest stable one, ``α / max_i margin_i``, at most half of the present one.
    For plateaus it is the rate at which the steepest direction of their median node relaxes within the horizon,
    ``α · t/horizon``, or half of the largest stable one where that is less.
    """
    facts = diagnosis.checkpoint.optimizer or {}
    layers = {layer.name: layer for layer in diagnosis.layers}
    nodes = {(node.layer, node.index): node for node in diagnosis.nodes}
    grouped: dict[tuple[str, str], list[Treatment]] = {}
    for treatment in treatments:
        if treatment.layer in layers:
            grouped.setdefault((treatment.layer, treatment.kind), []).append(treatment)
    return tuple(
        _suggestion(layers[name], kind, group, nodes, facts) for (name, kind), group in grouped.items()
    )


def _suggestion(
    layer: LayerDiagnosis,
    kind: str,
    group: Sequence[Treatment],
    nodes: Mapping[tuple[str, int], NodeDiagnosis],
    facts: Mapping[str, object],
) -> Suggestion:
    known = [nodes[t.layer, t.index] for t in group if t.index is not None and (t.layer, t.index) in nodes]
    lr = layer.measures.get("learning_rate") or facts.get("lr")
    largest = _largest_stable(layer, known, float(lr)) if isinstance(lr, int | float) and lr else None
    rate = None if largest is None else BELOW_STABLE * largest
    if kind == "lower_lr" and isinstance(lr, int | float) and lr:
        rate = BELOW_STABLE * min(float(lr), largest or float(lr))
    elif kind == "raise_lr":
        rate = _rate_to_relax(known, {**facts, "lr": lr}, rate)
    elif kind == "leaky_slope":
        rate = None
    code = max((t.code for t in group), key=[t.code for t in group].count)
    reason = next(t.detail for t in group if t.code == code)
    return Suggestion(
        layer=layer.name, nodes=tuple(t.index for t in group if t.index is not None), code=code, kind=kind,
        reason=reason, lr=rate, largest_stable_lr=largest,
    )  # fmt: skip


def _largest_stable(layer: LayerDiagnosis, nodes: Iterable[NodeDiagnosis], lr: float) -> float | None:
    margins = [layer.measures.get("stability_margin_max")]
    margins += [node.measures.get("stability_margin") for node in nodes]
    known = [margin for margin in margins if margin is not None and margin > 0]
    return lr / max(known) if known else None


def _rate_to_relax(
    nodes: Sequence[NodeDiagnosis], facts: Mapping[str, object], most: float | None
) -> float | None:
    """Return a rate at which the steepest direction of the median node relaxes within the horizon, up to ``most``."""
    lr, horizon = facts.get("lr"), facts.get("horizon")
    times = sorted(t for node in nodes if (t := node.measures.get("relaxation_steps")) is not None and t > 0)
    if not isinstance(lr, int | float) or not isinstance(horizon, int | float) or not times:
        return None
    wanted = float(lr) * times[len(times) // 2] / float(horizon)
    return None if wanted <= lr else (wanted if most is None else min(wanted, most))


def snippet(suggestions: Sequence[Suggestion], optimizer: Mapping[str, object] | None) -> str | None:
    """Return Python for the user's training code that follows suggestions; ``None`` where no code would.

    Its lines are short, so that none is broken where a terminal is 80 columns wide.
    """
    lines = [*_groups(suggestions, optimizer or {}), *_slopes(suggestions)]
    return "\n".join(lines) + "\n" if lines else None


def _groups(suggestions: Sequence[Suggestion], optimizer: Mapping[str, object]) -> Iterator[str]:
    rates = {
        s.layer: s.lr for s in sorted(suggestions, key=lambda s: s.kind == "lower_lr") if s.lr is not None
    }
    if not rates:
        return
    if any(map(ONE_OF_SEVERAL.search, rates)):
        yield "import re"
        yield ""
    yield "rates = {"
    yield from (f"    {layer!r}: {rate:.3g}," for layer, rate in rates.items())
    yield "}"
    yield 'groups = {layer: {"params": [], "lr": lr} for layer, lr in rates.items()}'
    yield 'rest = {"params": []}'
    yield "for name, parameter in model.named_parameters():"
    yield '    layer = name.rpartition(".")[0]'
    if any(map(ONE_OF_SEVERAL.search, rates)):  # the parameters of rnn.l1 are rnn.weight_ih_l1 and so on
        yield "    if layer not in groups:"
        yield r'        layer = re.sub(r"\w+_(l\d+\w*)$", r"\1", name)'
    yield "    group = groups.get(name) or groups.get(layer) or rest"
    yield '    group["params"].append(parameter)'
    name = _CLASSES.get(str(optimizer.get("name")))
    if name is None:
        yield "# give [*groups.values(), rest] to your optimiser"
        yield "# in place of model.parameters()"
    else:
        yield f"optimizer = torch.optim.{name}("
        yield "    [*groups.values(), rest],"
        yield from (f"    {key}={value}," for key, value in _options(name, optimizer))
        yield ")"


def _options(name: str, optimizer: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield what the optimiser was given, so that nothing but rates changes."""
    for key in ("lr", *(("momentum",) if name == "SGD" else ("betas", "eps")), "weight_decay"):
        value = optimizer.get(key)
        if value is not None and (value or name == "AdamW"):  # AdamW decays where nothing is said
            yield key, tuple(value) if isinstance(value, list) else value


def _slopes(suggestions: Sequence[Suggestion]) -> Iterator[str]:
    layers = [s.layer for s in suggestions if s.kind == "leaky_slope"]
    if not layers:
        return
    yield "# for some hundred steps a slope where the activation has none, behind"
    yield from (f"#   {layer!r}" for layer in layers)
    yield "leaky = torch.nn.LeakyReLU(0.01)  # put the ReLU back afterwards"
