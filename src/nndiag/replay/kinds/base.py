"""What a layer is: nodes with their parameters, and the ways in which a torch function uses them.

A **layer** says which entries of which parameters belong to which node. A **kind** says what a torch function does with
them. The two meet in a ``Use``: a weight of a GPT may be used by an embedding and by the decoder, and the block of a
node counts both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

from torch import Tensor, cat

from nndiag.replay.units import Units


@dataclass(frozen=True)
class Slot:
    """What every node owns in one parameter.

    The parameter, of shape ``shape``, is seen as ``view``; the axes ``units`` of that view count nodes, the others
    a node's own entries. Along the output of the function that uses the parameter a node's own outputs are ``outer``
    ones far apart (the gates of an LSTM) times ``inner`` ones side by side (the rows of an attention head); in a node's
    row they come before its inputs. ``rest`` gives the order of the axes of ``view`` that do not count nodes,
    where it is not their own.
    """

    parameter: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    units: tuple[int, ...] = (0,)
    outer: int = 1
    inner: int = 1
    rest: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, parameter: str, tensor: Tensor, nodes: int | None = None, outer: int = 1, units: tuple[int, ...] = (0,),
        view: Sequence[int] | None = None,
    ) -> Slot:  # fmt: skip
        """Return the slot of a parameter: by default the first axis counts nodes.

        Args:
            parameter: its name.
            tensor: the parameter.
            nodes: how many nodes share its first axis; what is over lies side by side.
            outer: how many times the first axis runs through all nodes.
            units: the axes of ``view`` that count nodes, where the first axis does not.
            view: the shape in which they do.
        """
        shape = tuple(tensor.shape)
        if view is not None or units != (0,):
            return cls(parameter, shape, tuple(view or shape), units)
        first = shape[0] if shape else 1
        nodes = first // outer if nodes is None else nodes
        inner = first // max(1, outer * nodes)  # no nodes at all, where a layer has been pruned away
        return cls(parameter, shape, (outer, nodes, inner, *shape[1:]), (1,), outer, inner)

    @property
    def along_first(self) -> bool:
        """Whether the first axis of the parameter alone counts nodes."""
        return self.units == (0,) or (self.units == (1,) and len(self.view) == len(self.shape) + 2)

    @cached_property
    def in_order(self) -> bool:
        """Whether the parameter holds row after row."""
        return self.along_first and self.outer == 1 and self.rest is None

    @cached_property
    def _table(self) -> tuple[int, int]:
        return self.nodes, self.width

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return math.prod(self.view[axis] for axis in self.units)

    @property
    def width(self) -> int:
        """Entries of one node."""
        return math.prod(self.view) // max(self.nodes, 1)

    def rows(self, tensor: Tensor, lead: int = 0) -> Tensor:
        """Return the parameter's entries as ``(..., nodes, width)``; ``lead`` axes stand before its own."""
        ahead = tensor.shape[:lead]
        if self.in_order:
            return tensor.reshape(*ahead, *self._table)
        seen = tensor.reshape(*ahead, *self.view)
        order = [*range(lead), *(lead + axis for axis in self._order)]
        return seen.permute(order).reshape(*ahead, self.nodes, self.width)

    def parameter_of(self, rows: Tensor) -> Tensor:
        """Return ``(nodes, width)`` rows in the parameter's own shape: the way back from ``rows``."""
        order = self._order
        seen = rows.reshape([self.view[axis] for axis in order])
        back = [order.index(axis) for axis in range(len(order))]
        return seen.permute(back).reshape(self.shape)

    @property
    def _order(self) -> list[int]:
        rest = [axis for axis in range(len(self.view)) if axis not in self.units]
        return [*self.units, *(self.rest or rest)]


@dataclass(frozen=True)
class Layer:
    """A layer with its nodes: ``nodes`` blocks of ``size`` parameters each, weights first and biases last.

    ``name`` is the dotted path of the module that owns the parameters, or a raw parameter's own name. Node ``i``
    belongs to group ``i // (nodes // groups)``; nodes of a group share their inputs. ``fan_in`` counts the inputs
    of one node.
    """

    name: str
    label: str
    nodes: int
    fan_in: int
    weights: tuple[Slot, ...]
    biases: tuple[Slot, ...] = ()
    groups: int = 1

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Weights and biases, in the order of a node's row."""
        return self.weights + self.biases

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(slot.parameter for slot in self.slots)

    @property
    def weight_size(self) -> int:
        """Weights of one node, biases left out."""
        return sum(slot.width for slot in self.weights)

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return sum(slot.width for slot in self.slots)

    @property
    def parameters(self) -> int:
        """Parameters of the whole layer."""
        return self.nodes * self.size

    def place(self, slot: Slot) -> slice:
        """Return where a slot's entries lie in a node's row."""
        before = sum(other.width for other in self.slots[: self.slots.index(slot)])
        return slice(before, before + slot.width)

    def rows(self, tensors: Mapping[str, Tensor], lead: int = 0) -> Tensor:
        """Return the layer's entries of a mapping by parameter name as ``(..., nodes, size)``."""
        parts = [slot.rows(tensors[slot.parameter], lead) for slot in self.slots]
        return parts[0] if len(parts) == 1 else cat(parts, dim=lead + 1)


@dataclass(frozen=True)
class Samples:
    """Where the samples are among the rows of a layer's output: row ``(before · batch + n) · after + t`` is of ``n``.

    ``before`` is 1 where samples come first; ``after`` counts the rows of one sample that follow each other.
    """

    before: int = 1
    after: int = 1

    def batch(self, rows: int) -> int:
        """Return how many samples there are in so many rows."""
        return rows // (self.before * self.after)


@dataclass(frozen=True)
class Use:
    """One call of a torch function with a layer's parameters.

    ``inputs`` holds the tensors it was given, without its graph and without parameters, ``options`` everything else, by
    the names of the function's arguments. A use may outlive its graph.
    """

    kind: Kind
    layer: Layer
    weight: Slot
    bias: Slot | None
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)

    @property
    def input(self) -> Tensor:
        """What the layer is applied to."""
        return self.inputs["input"]

    def option(self, name: str, default: Any) -> Any:
        """Return an option by name."""
        return self.options.get(name, default)

    def with_samples(self, samples: Samples) -> Use:
        """Return the same use with the samples where they are."""
        return replace(self, samples=samples)


@dataclass(frozen=True)
class Share:
    """The calls of one layer in a pass that use the same parameters in the same way; positions stand side by side.

    ``places`` are the indices of its calls, ``uses`` the calls themselves.
    """

    uses: tuple[Use, ...]
    places: tuple[int, ...]

    @property
    def kind(self) -> Kind:
        """How the parameters are used."""
        return self.uses[0].kind

    @property
    def layer(self) -> Layer:
        """Whose they are."""
        return self.uses[0].layer

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The parameters used: a weight, and a bias where there is one."""
        first = self.uses[0]
        return (first.weight,) if first.bias is None else (first.weight, first.bias)

    @property
    def width(self) -> int:
        """Entries of a node in these parameters."""
        return sum(slot.width for slot in self.slots)

    @property
    def complete(self) -> bool:
        """Whether these are all parameters of the layer."""
        return self.slots == self.layer.slots

    def own(self, rows: Tensor) -> Tensor:
        """Pick these parameters' entries from rows ``(nodes, size)``."""
        return rows if self.complete else cat([rows[:, self.layer.place(slot)] for slot in self.slots], dim=1)

    def add_to(self, rows: Tensor, own: Tensor) -> None:
        """Add ``(..., width)`` to these parameters' entries of ``(..., size)``."""
        start = 0
        for slot in self.slots:
            rows[..., self.layer.place(slot)] += own[..., start : start + slot.width]
            start += slot.width


class Kind(Protocol):
    """One way in which a torch function uses a weight, and a bias with it.

    ``functions`` maps the names of such functions to the names of their arguments, in order. Gradients at the
    function's output are held as a kind finds best, the samples along the first axis; only the kind looks inside.
    """

    functions: ClassVar[Mapping[str, Sequence[str]]]

    def fits(self, use: Use, output: Tensor) -> bool:
        """Whether this call is one that the kind can treat."""

    def units(self, output: Tensor, layer: Layer) -> Units | None:
        """Say where the nodes lie in the function's output, if they are units of it."""

    def leading(self, use: Use, output_shape: Sequence[int]) -> Sequence[int]:
        """Return the axes of the output that count rows: what samples may be among."""

    def spread(self, use: Use, output: Tensor) -> Tensor:
        """Return something shaped like the output as ``(rows, outputs, positions)``."""

    def gather(self, share: Share, gradients: Sequence[Tensor]) -> Tensor:
        """Return the gradients at the output of each call of a share in the form that the kind holds them in."""

    def inputs(self, share: Share) -> Tensor:
        """Return what the gradients of parameters are made of beside the gradients at the output."""

    def jacobian(self, share: Share, inputs: Tensor, g: Tensor, start: int, stop: int) -> Tensor:
        """Return the gradient of each sample in each of the nodes ``start:stop``, ``(batch, stop − start, width)``."""

    def squared_norms(self, share: Share, inputs: Tensor, g: Tensor) -> Tensor:
        """Return the squared norm of each sample's gradient in each node, ``(batch, nodes)``."""

    def reach(self, share: Share, g: Tensor) -> Tensor:
        """Return ``Σ_n ‖g_n‖²`` of the gradients at each node's own outputs, ``(nodes,)`` float64."""

    def merged(self, share: Share) -> Share:
        """Return the share with fewer uses, whose gradients are held alike, where these are multiplied faster."""

    def lookups(self, share: Share) -> Tensor | None:
        """Return how often each node took part, ``(nodes,)``; ``None`` where every node always does."""

    def respond(self, share: Share, rows: Tensor) -> Tensor:
        """Return what the function puts out with ``rows``, ``(nodes, width)``, for parameters, held like gradients."""

    def contract(self, share: Share, g: Tensor, response: Tensor) -> Tensor:
        """Return ``⟨J_{n,i}, v_i⟩`` as ``(batch, nodes)`` from gradients and a response to ``v``."""

    def weigh(self, share: Share, q: Tensor, g: Tensor, sums: Tensor) -> None:
        """Add the gradients, those of sample ``n`` and node ``i`` multiplied by ``q[n, i]``, to sums like them."""

    def pull_back(self, share: Share, cotangents: Tensor) -> Tensor:
        """Return the gradient of the parameters at such cotangents, ``(nodes, width)``."""
