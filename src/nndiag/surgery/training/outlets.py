"""The weights by which a unit is heard: where in another layer's parameter they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["rows", "columns", "kernels", "transposed"]


@dataclass(frozen=True)
class Outlet:
    """Where the units of a layer enter another one's parameter.

    Of ``weight``, unit ``i`` takes ``inner`` entries from ``start + i · inner`` on along the axis of the inputs; a
    negative ``start`` leaves out the first units of the layer, such as the queries and keys of an attention.
    ``form`` says where that axis lies: ``rows`` of outputs (a Linear), ``columns`` (GPT-2's), ``kernels`` of a
    convolution, or a ``transposed`` one. ``bias`` and ``layer`` are of the same layer. ``groups`` are the
    convolution's, ``padded`` says that it sees zeros beyond the border.
    """

    layer: str
    weight: str
    bias: str | None
    form: Form
    start: int = 0
    inner: int = 1
    groups: int = 1
    padded: bool = False

    def outgoing(self, weight: Tensor, unit: int) -> Tensor:
        """Return the view of the parameter that listens to one unit, ``(outputs heard by, ...)``."""
        first = self.start + unit * self.inner
        if self.form == "rows":
            return weight[:, first : first + self.inner]
        if self.form == "columns":
            return weight[first : first + self.inner].T
        if self.form == "transposed":
            return weight[first]
        group, place = divmod(first, weight.shape[1])
        outputs = weight.shape[0] // self.groups
        return weight[group * outputs : (group + 1) * outputs, place]

    def entries(self, weight: Tensor) -> Tensor:
        """Return the parameter as ``(outputs, entries, rest)``, entries along the axis of the inputs; no groups."""
        if self.form == "rows":
            return weight.unsqueeze(2)
        if self.form == "columns":
            return weight.T.unsqueeze(2)
        return (weight if self.form == "kernels" else weight.transpose(0, 1)).flatten(2)

    def heard_by(self, weight: Tensor, unit: int) -> slice:
        """Return which nodes of the layer listen to one unit: those that the rows of ``outgoing`` are of."""
        first = self.start + unit * self.inner
        if self.form == "rows":
            return slice(0, weight.shape[0])
        if self.form == "columns":
            return slice(0, weight.shape[1])
        if self.form == "transposed":
            each = weight.shape[1]
            group = first // (weight.shape[0] // self.groups)
        else:
            each = weight.shape[0] // self.groups
            group = first // weight.shape[1]
        return slice(group * each, (group + 1) * each)

    def constant(self, weight: Tensor, unit: int, entries: Tensor) -> Tensor:
        """Return what a constant output of the unit adds to each node that listens, ``(outputs heard by,)``.

        Args:
            weight: the parameter.
            unit: the unit.
            entries: its constant at each of its ``inner`` entries, float64 on the CPU, as is what is returned.
        """
        heard = self.outgoing(weight, unit).double().cpu()
        if self.form in ("rows", "columns"):
            return heard @ entries
        return heard.flatten(1).sum(dim=1) * entries[0]


@dataclass(frozen=True)
class Norm:
    """A normalisation that units pass: channel ``start + i · inner`` and the next ones are unit ``i``'s.

    ``weight`` is the name of its scale, ``early`` says that no activation acts on the units before it.
    """

    layer: str
    weight: str
    start: int
    inner: int
    early: bool

    def channels(self, units: Tensor) -> Tensor:
        """Return the channels of some units, in their order."""
        return (self.start + units[:, None] * self.inner + torch.arange(self.inner)).flatten()


@dataclass(frozen=True)
class Shared:
    """Units of a layer that no outlet shuts alone, and why.

    ``behind`` are units of the same layer without which they are not heard either: the values of the head whose queries
    and keys they are. ``partner`` is how far off the unit lies that each of them is multiplied with.
    """

    units: range
    reason: str
    behind: range
    partner: int


@dataclass(frozen=True)
class Paths:
    """What becomes of the units of one layer.

    ``outlets`` are the weights that listen to them, ``norms`` the normalisations by stored statistics that they pass.
    ``escape`` is a sentence that says where they go besides: into what no weight of their own can shut, such as a
    residual stream; ``None``: nowhere. ``shared`` are units of which that holds alone.
    """

    outlets: tuple[Outlet, ...] = ()
    norms: tuple[Norm, ...] = ()
    escape: str | None = None
    is_output: bool = False
    shared: tuple[Shared, ...] = ()

    @property
    def norm(self) -> Norm | None:
        """The normalisation between the units and their activation."""
        return next((norm for norm in self.norms if norm.early and norm.inner == 1), None)

    @property
    def closable(self) -> bool:
        """Whether the outlets are all that hears the units, but for those that are ``shared``."""
        return bool(self.outlets) and self.escape is None and not self.is_output

    def closes(self, unit: int) -> bool:
        """Whether the outlets are all that hears one unit."""
        return self.closable and self.shared_by(unit) is None

    def outlets_of(self, unit: int) -> tuple[Outlet, ...]:
        """Return the outlets that hear a unit."""
        return () if self.shared_by(unit) is not None else self.outlets

    def shared_by(self, unit: int) -> Shared | None:
        """Return those that a unit is one of."""
        return next((shared for shared in self.shared if unit in shared.units), None)

    def open_because(self, unit: int) -> str:
        """Return why the outlets are not all that hears a unit."""
        if self.is_output:
            return "it is an output of the network"
        shared = self.shared_by(unit)
        return (
            (None if shared is None else shared.reason) or self.escape or "nothing was seen to listen to it"
        )
