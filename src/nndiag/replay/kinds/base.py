"""What a kind of layer must provide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, cat, nn

from nndiag.replay.units import Units


@dataclass(frozen=True)
class Layer:
    """A layer with its nodes: ``nodes`` blocks of ``size`` parameters each, weights first and the bias last.

    ``name`` is the dotted path of the module that owns the parameters; ``weight`` and ``bias`` are the
    parameters' names. Node ``i`` belongs to group ``i // (nodes // groups)``; nodes of a group share
    their inputs.
    """

    name: str
    kind: Kind
    label: str
    nodes: int
    fan_in: int
    weight: str
    bias: str | None
    groups: int = 1

    @property
    def size(self) -> int:
        """Parameters of one node."""
        return self.fan_in + (self.bias is not None)

    @property
    def parameters(self) -> int:
        """Parameters of the whole layer."""
        return self.nodes * self.size

    def rows(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the layer's entries of a mapping by parameter name as ``(nodes, size)``."""
        bias = None if self.bias is None else tensors[self.bias]
        return self.kind.rows(tensors[self.weight], bias, self.groups)


@dataclass(frozen=True)
class Use:
    """One call of a torch function with a layer's weight: the input and how the function was called.

    ``args`` and ``kwargs`` hold its options alone, no tensors, each in its place: a use may outlive its
    graph.
    """

    input: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    weight_shape: tuple[int, ...]

    def option(self, order: Sequence[str], name: str, default: Any) -> Any:
        """Return an option by name, whether it was given by place (in the function's ``order``) or by keyword."""
        place = order.index(name)
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


class Kind(Protocol):
    """One way of using a weight.

    ``functions`` are the names of the torch functions in which it is used.
    """

    functions: frozenset[str]

    def describe(self, name: str, module: nn.Module, prefix: str) -> Layer | None:
        """Return the layer that a module is, or ``None`` where it is of another kind."""

    def rows(self, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Return weight and bias as ``(nodes, size)``."""

    def units(self, output: Tensor, layer: Layer) -> Units:
        """Say where the nodes lie in the function's output."""

    def columns(self, layer: Layer, use: Use) -> Tensor:
        """Return the inputs of the nodes as ``(batch, groups, fan_in, positions)``, without the bias's ones."""

    def respond(self, layer: Layer, use: Use, rows: Tensor) -> Tensor:
        """Return what the layer's own function puts out with ``rows`` in place of its parameters.

        ``rows`` is ``(nodes, size)``, the result ``(batch, nodes, positions)``.
        """

    def pull_back(self, layer: Layer, use: Use, cotangents: Tensor) -> Tensor:
        """Return the parameters' gradient at ``(batch, nodes, positions)`` cotangents, ``(nodes, size)``."""

    def positions(self, output: Tensor, layer: Layer) -> int:
        """Return how many positions one sample has in the function's output."""


def stacked_rows(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a weight whose first axis counts nodes, flattened, with the bias as the last column."""
    rows = weight.reshape(weight.shape[0], -1)
    return rows if bias is None else cat([rows, bias.reshape(-1, 1)], dim=1)
