"""Does it mean anything: what the loss does when flagged nodes are taken out, and when others are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.lesions.networks import LISTENERS
from benchmarks.lesions.planting import Node
from benchmarks.lesions.scanning import Said
from benchmarks.markdown import rows, section

NOTHING = frozenset("ND102 ND201 ND304".split())
"""Dead, collapsed, without influence: what does nothing on the probe."""
ALMOST = frozenset("ND202 ND203 ND204 ND401".split())
"""Saturated, constant, dormant, flat: what does little."""
GROUPS = ("nothing", "almost", "others", "healthy")


@dataclass(frozen=True)
class Place:
    """Where the outputs of a layer's units can be replaced: the module that takes them in, and their axis."""

    module: str
    axis: int
    units: int


@dataclass(frozen=True)
class Ablation:
    """Relative changes of the loss, of one node at a time, of a network.

    ``collapsed`` says that the network answers the same on all samples; ``missing`` counts flagged nodes that could not
    be taken out.
    """

    name: str
    changes: Mapping[str, tuple[float, ...]]
    codes: Mapping[str, frozenset[str]]
    collapsed: bool
    missing: int


def places(model: nn.Module) -> dict[str, Place]:
    """Return, by layer, where its units' outputs are taken in: of layers one after the other by the next one."""
    found, last = {}, None
    for name, part in model.named_children():
        sums = isinstance(part, nn.Linear | nn.Conv2d)
        if last is not None and (sums or isinstance(part, nn.Flatten)):
            found[last[0]] = Place(name, 1, last[1])
            last = None
        if sums:
            last = name, len(part.weight)
    return found


def of_architecture(model: nn.Module) -> dict[str, Place]:
    """Return the same of a network of the benchmark."""
    found = {}
    for layer, listener in LISTENERS.items():
        modules = dict(model.named_modules())
        if layer in modules and listener in modules:
            units = (
                modules[layer].hidden_size
                if isinstance(modules[layer], nn.RNNBase)
                else len(modules[layer].weight)
            )
            found[layer] = Place(listener, 1 if isinstance(modules[listener], nn.Conv2d) else -1, units)
    return found


def ablated(
    name: str,
    model: nn.Module,
    said: Said,
    data: tuple[Tensor, Tensor],
    loss: str,
    at: Mapping[str, Place] | None = None,
    most: int = 400,
) -> Ablation:
    """Replace the output of one unit after the other by its mean over the probe, and measure the loss in float64.

    Args:
        name: of the network.
        model: the network.
        said: its findings.
        data: the probe; without labels the loss is the root mean square change of the outputs over their own.
        loss: ``"cross_entropy"``, or ``"outputs"``.
        at: where the units of its layers are taken in; of layers one after the other it is found.
        most: healthy nodes that are taken out at most, by a fixed draw.
    """
    at = places(model) if at is None else at
    groups: dict[str, list[Node]] = {group: [] for group in GROUPS}
    codes: dict[str, set[str]] = {group: set() for group in GROUPS}
    for layer, place in at.items():
        for unit in range(place.units):
            grave = said.every.get((layer, unit), frozenset())
            group = _group(grave)
            groups[group].append((layer, unit))
            codes[group] |= grave
    missing = sum(layer not in at for layer, _ in said.every)
    groups["healthy"] = random.Random(0).sample(groups["healthy"], min(most, len(groups["healthy"])))
    change = _Change(model.double().eval(), data[0].double(), data[1], loss)
    found = {
        group: tuple(change.without(at[layer], unit) for layer, unit in nodes)
        for group, nodes in groups.items()
    }
    model.float()
    named = {group: frozenset(one) for group, one in codes.items()}
    return Ablation(name, found, named, said.collapsed, missing)


def _group(codes: frozenset[str]) -> str:
    if codes & NOTHING:
        return "nothing"
    if codes & ALMOST and "ND301" not in codes:  # one that no gradient reaches may be used all the same
        return "almost"
    return "others" if codes else "healthy"


class _Change:
    """The loss without one unit."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, loss: str) -> None:
        self._model, self._x, self._y, self._loss = model, x, y, loss
        with torch.no_grad():
            self._full = model(x)
        self._before = self._value(self._full)

    def _value(self, output: Tensor) -> float:
        if self._loss == "outputs":
            changed = (output - self._full).square().mean() / self._full.square().mean()
            return float(changed.sqrt())
        return float(nn.functional.cross_entropy(output, self._y))

    def without(self, place: Place, unit: int) -> float:
        """Return ``|L − L₀|/L₀`` with the unit's output replaced by its mean; of outputs their relative change."""

        def replaced(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = inputs[0].clone()
            own = h.select(place.axis, unit)
            own.copy_(own.mean().expand_as(own))
            return (h, *inputs[1:])

        hook = self._model.get_submodule(place.module).register_forward_pre_hook(replaced)
        try:
            with torch.no_grad():
                value = self._value(self._model(self._x))
        finally:
            hook.remove()
        return value if self._loss == "outputs" else abs(value - self._before) / self._before


def ablations(found: Sequence[Ablation]) -> list[str]:
    """Return the table."""
    lines = section(
        "Ablation",
        "One unit at a time, its output replaced by its mean over the probe, in float64: relative change of the loss "
        "(of nets without labels: root mean square change of the outputs over their own). Nothing: nodes called dead, "
        "collapsed or without influence (ND102, ND201, ND304). Little: saturated, constant, dormant or flat (ND202, "
        "ND203, ND204, ND401), which is right where the change is small beside that of the unflagged. Others: with "
        "other findings above a note, also no gradient (ND301), which says that a node does not learn, not that it is "
        "not used. Unflagged: all others, 400 at most.",
    )
    body = [_row(one) for one in found]
    head = [
        "network",
        "nothing",
        "largest",
        "little",
        "largest",
        "of the median",
        "others",
        "largest",
        "unflagged",
    ]
    lines += rows([*head, "median", "largest"], body)
    return [*lines, *_summary(found)]


def _row(one: Ablation) -> list[str]:
    nothing, almost, others, healthy = (one.changes[group] for group in GROUPS)
    usual = median(healthy) if healthy else 0.0
    share = f"{max(almost) / usual:.1e}" if almost and usual else "–"
    which = f" ({', '.join(sorted(one.codes['others']))})" if others else ""
    mark = " †" if one.collapsed else ""
    return [
        one.name + mark, str(len(nothing)), _largest(nothing), str(len(almost)), _largest(almost), share,
        f"{len(others)}{which}", _largest(others), str(len(healthy)), f"{usual:.1e}" if healthy else "–",
        _largest(healthy),
    ]  # fmt: skip


def _summary(found: Sequence[Ablation]) -> Iterator[str]:
    nothing = [change for one in found for change in one.changes["nothing"]]
    usual = [median(one.changes["healthy"]) for one in found if one.changes["healthy"] and not one.collapsed]
    yield (
        f"Largest change of any of the {len(nothing):,} nodes that are said to do nothing: {_largest(nothing)}. "
        f"Smallest median of the unflagged, over the networks that answer: {min(usual):.1e}."
    )
    yield ""
    if any(one.collapsed for one in found):
        yield (
            "† The network answers the same on all samples, and is said to (ND501): what is not flagged in it moves "
            "that one answer a little, and is no measure for what is."
        )
        yield ""
    missing = sum(one.missing for one in found)
    if missing:
        yield f"{missing} flagged nodes that no other layer takes in, the networks' own outputs, were not taken out."
        yield ""


def _largest(values: Sequence[float]) -> str:
    return f"{max(values):.1e}" if values else "–"
