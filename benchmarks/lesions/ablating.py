"""Does it mean anything: what the loss does when flagged nodes are taken out, and when others are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.lesions.scanning import Said
from benchmarks.markdown import rows, section

NOTHING = frozenset("ND102 ND201 ND304".split())
"""Dead, collapsed, without influence: what does nothing on the probe."""
ALMOST = frozenset("ND202 ND203 ND204 ND401".split())
"""Saturated, constant, dormant, flat: what does little."""


@dataclass(frozen=True)
class Ablation:
    """Relative changes of the loss, of one node at a time, of a network."""

    name: str
    nothing: tuple[float, ...]
    almost: tuple[float, ...]
    healthy: tuple[float, ...]


def ablated(
    name: str, model: nn.Sequential, said: Said, data: tuple[Tensor, Tensor], loss: str, most: int = 400
) -> Ablation:
    """Replace the output of one unit after the other by its mean over the probe, and measure the loss in float64.

    Args:
        name: of the network.
        model: layers one after the other; a unit is one of a layer followed by an activation.
        said: its findings.
        data: the probe; without labels the loss is the mean squared change of the outputs over their mean square.
        loss: ``"cross_entropy"``, or ``"outputs"``.
        most: healthy nodes that are taken out at most, by a fixed draw.
    """
    model = model.double().eval()
    x, y = data[0].double(), data[1]
    groups: dict[str, list[tuple[str, int]]] = {"nothing": [], "almost": [], "healthy": []}
    for layer, units in _hidden(model):
        for unit in range(units):
            codes = said.roots.get((layer, unit), frozenset())
            if codes & NOTHING:
                groups["nothing"].append((layer, unit))
            elif codes & ALMOST:
                groups["almost"].append((layer, unit))
            elif not said.every.get((layer, unit)):
                groups["healthy"].append((layer, unit))
    draw = random.Random(0)
    groups["healthy"] = draw.sample(groups["healthy"], min(most, len(groups["healthy"])))
    change = _Change(model, x, y, loss)
    found = {group: tuple(change.without(*node) for node in nodes) for group, nodes in groups.items()}
    model.float()
    return Ablation(name, **found)


def _hidden(model: nn.Sequential) -> Iterator[tuple[str, int]]:
    """Yield names and units of layers with parameters that another follows."""
    layers = [(name, one) for name, one in model.named_children() if isinstance(one, nn.Linear | nn.Conv2d)]
    for name, one in layers[:-1]:
        yield name, len(one.weight)


class _Change:
    """The loss without one unit."""

    def __init__(self, model: nn.Sequential, x: Tensor, y: Tensor, loss: str) -> None:
        self._model, self._y, self._loss = model, y, loss
        self._parts = list(model.named_children())
        self._inputs = [x]
        with torch.no_grad():
            for _, part in self._parts:
                self._inputs.append(part(self._inputs[-1]))
        self._before = self._value(self._inputs[-1])

    def _value(self, output: Tensor) -> float:
        if self._loss == "outputs":
            full = self._inputs[-1]
            return float((output - full).square().mean() / full.square().mean())
        return float(nn.functional.cross_entropy(output, self._y))

    def without(self, layer: str, unit: int) -> float:
        """Return ``|L − L₀|/L₀`` with the unit's activation replaced by its mean; of outputs their relative change."""
        place = next(i for i, (name, _) in enumerate(self._parts) if name == layer)
        after = place + 1
        while after < len(self._parts) and not isinstance(
            self._parts[after][1], nn.Linear | nn.Conv2d | nn.Flatten
        ):
            after += 1
        h = self._inputs[after].clone()
        h[:, unit] = h[:, unit].mean()
        with torch.no_grad():
            for _, part in self._parts[after:]:
                h = part(h)
        if self._loss == "outputs":
            return self._value(h)
        return abs(self._value(h) - self._before) / self._before


def ablations(found: Sequence[Ablation]) -> list[str]:
    """Return the table."""
    lines = section(
        "Ablation",
        "One unit at a time, its output replaced by its mean over the probe, in float64: relative change of the loss "
        "(of nets without labels: mean squared change of the outputs over their mean square). Dead, collapsed and "
        "without influence: what is said to do nothing; saturated, constant, dormant, flat: little.",
    )
    body = []
    for one in found:
        body.append([
            one.name, str(len(one.nothing)), _largest(one.nothing), str(len(one.almost)), _largest(one.almost),
            str(len(one.healthy)), _middle(one.healthy), _largest(one.healthy),
        ])  # fmt: skip
    head = [
        "network", "nothing", "largest", "little", "largest", "unflagged", "median", "largest",
    ]  # fmt: skip
    return lines + rows(head, body)


def _largest(values: Sequence[float]) -> str:
    return f"{max(values):.1e}" if values else "–"


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.1e}" if values else "–"
