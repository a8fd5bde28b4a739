"""The lesions: what each does to a unit, at which strengths, and which finding says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.lesions.networks import Site

Node = tuple[str, int]
Plant = Callable[[nn.Module, Site, int, float], None]

NOT_FINITE, EXPLODED = "not finite", "exploded"

OF_BIAS = {"relu": "ND201", "gelu": "ND202", "tanh": "ND202", "lstm": "ND203"}
"""What a unit is whose bias is far below, by its activation."""


@dataclass(frozen=True)
class Lesion:
    """One way to wound a unit.

    ``code`` is the finding that names it, by activation where that differs; ``activations`` are those of the sites
    where it can be planted. ``needs`` names what a site must have beside; ``also`` findings that are true of the
    wounded unit too.
    """

    name: str
    plant: Plant
    strengths: tuple[float, ...]
    code: str | dict[str, str]
    activations: frozenset[str] = frozenset({"relu", "tanh", "gelu", "lstm", "gru"})
    needs: str = ""
    also: frozenset[str] = frozenset()

    def fits(self, site: Site) -> bool:
        """Whether it can be planted there."""
        has = {
            "": True,
            "norm": site.norm is not None,
            "constant": site.constant is not None or site.layer == "0",
        }
        return site.activation in self.activations and has[self.needs]

    def expected(self, site: Site, unit: int) -> tuple[Node, str]:
        """Return the node at which the finding is to stand, and its code."""
        code = self.code if isinstance(self.code, str) else self.code[site.activation]
        layer = site.norm if self.needs == "norm" and site.norm else site.layer
        return (layer, unit), code


def rows(site: Site, unit: int) -> list[int]:
    """Return the rows of a unit in its parameters: one, or one for every gate."""
    return [unit + gate * site.units for gate in range(site.gates)]


def parameter(model: nn.Module, name: str) -> Tensor:
    """Return the numbers of a parameter, to be changed in place."""
    return dict(model.named_parameters())[name].data


def _low_bias(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    if site.norm:
        parameter(model, f"{site.norm}.bias")[unit] = -strength
    elif site.gates > 1:
        parameter(model, site.biases[0])[rows(site, unit)[3]] = -strength  # the output gate
    else:
        parameter(model, site.biases[0])[unit] = -strength


def _high_bias(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    parameter(model, site.biases[0])[unit] = strength


def _incoming(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    for name in site.weights:
        parameter(model, name)[rows(site, unit)] *= strength


def _outgoing(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    for name in site.outgoing:
        parameter(model, name)[:, unit] *= strength


def _norm_scale(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    assert site.norm
    parameter(model, f"{site.norm}.weight")[unit] = strength


def _copied(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    """Copy the unit before it, with relative noise or the sign turned."""
    sign = -1.0 if strength < 0 else 1.0
    for name in (*site.weights, *site.biases):
        tensor = parameter(model, name)
        for own, other in zip(rows(site, unit), rows(site, unit - 1), strict=True):
            noise = torch.randn(tensor[other].shape, generator=torch.Generator().manual_seed(0))
            tensor[own] = sign * tensor[other] * (1 + max(strength, 0.0) * noise)
    if site.norm:
        for name in (f"{site.norm}.weight", f"{site.norm}.bias"):
            parameter(model, name)[unit] = parameter(model, name)[unit - 1]
        norm = model.get_submodule(site.norm)
        norm.running_mean[unit] = norm.running_mean[unit - 1]
        norm.running_var[unit] = norm.running_var[unit - 1]


def _constant(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    """Turn the incoming weights, their norm kept, to what is the same on every sample."""
    weight = parameter(model, site.weights[0])
    if site.constant is None:
        direction = torch.zeros_like(weight[unit])
        direction[[0, 32, 39]] = 1.0  # pixels that no digit touches
    else:
        direction = 1 / parameter(model, f"{site.constant}.weight")  # a norm's outputs sum up to a constant
    weight[unit] = weight[unit].norm() * direction / direction.norm()
    parameter(model, site.biases[0])[unit] = strength


def _not_finite(model: nn.Module, site: Site, unit: int, strength: float) -> None:
    weight = parameter(model, site.weights[0])[rows(site, unit)[0]]
    weight.view(-1)[0] = strength


LESIONS: Sequence[Lesion] = (
    Lesion("bias driven down", _low_bias, (50.0, 100.0, 1000.0), OF_BIAS, frozenset(OF_BIAS)),
    Lesion("incoming weights zeroed or tiny", _incoming, (0.0, 1e-6, 1e-4), "ND102"),
    Lesion("outgoing weights zeroed", _outgoing, (0.0, 1e-14), "ND304"),
    Lesion("saturated", _high_bias, (30.0, 100.0, 1000.0), "ND202", frozenset({"tanh"})),
    Lesion("BatchNorm scale zero", _norm_scale, (0.0, 1e-8), "ND102", needs="norm"),
    Lesion("duplicated", _copied, (0.0, 1e-8), "ND104"),
    Lesion("duplicated, signs turned", _copied, (-1.0,), "ND104", frozenset({"relu", "tanh", "gelu"}),
           also=frozenset({"ND201", "ND204"})),  # the mirror image of a unit that nearly always fires hardly ever does
    Lesion(EXPLODED, _incoming, (1e3, 1e4, 1e6), "ND103"),
    Lesion("constant", _constant, (0.5, 1.0), "ND203", frozenset({"relu", "tanh", "gelu"}), "constant"),
    Lesion(NOT_FINITE, _not_finite, (float("nan"), float("inf")), "ND101"),
)  # fmt: skip
