"""The network under treatment: its layers, who listens to them, and what has been changed so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nndiag.probe.probe import Probe
from nndiag.replay.kinds import Layer, Slot
from nndiag.replay.layers import Owners, owners
from nndiag.replay.orientation import layers_in_use
from nndiag.replay.state import undisturbed
from nndiag.surgery.edits import Edits
from nndiag.surgery.proof import Replayed, replay
from nndiag.surgery.training.following import find_paths
from nndiag.surgery.training.initial import DEFAULT
from nndiag.surgery.training.outlets import Paths

Values = dict[str, Tensor]
ROUND = 500_000
"""Seeds apart of two attempts."""


@dataclass
class Ward:
    """A network that is changed in place.

    ``dtypes`` are those that the checkpoint stores its tensors in, by the model's names: whatever is set is rounded to
    them, so that what is proved is what is written. ``reset`` marks what the optimiser has to forget. ``attempt``
    counts the rounds of treatment.
    """

    model: nn.Module
    probe: Probe
    seed: int
    initialiser: str = DEFAULT
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    layers: dict[str, Layer] = field(init=False)
    paths: dict[str, Paths] = field(init=False)
    owners: Owners = field(init=False)
    reset: dict[str, Tensor] = field(default_factory=dict, init=False)
    attempt: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Look at the network once: passes over the first samples show who listens to whom."""
        with undisturbed(self.model, self.seed):
            first = tuple(x[:8] for x in next(iter(self.probe.batches())).inputs)
            found = layers_in_use(self.model, first)
            self.layers = {layer.name: layer for layer in found}
            self.owners = owners(self.model, found)
            self.paths = find_paths(self.model, first, self.owners)
        self._before = self.state()

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers, without their graph, by name."""
        named = (*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers())
        return {name: tensor.detach() for name, tensor in named}

    def state(self) -> Values:
        """Return a copy of all parameters and buffers."""
        return {name: tensor.clone() for name, tensor in self.tensors().items()}

    def put_back(self, state: Mapping[str, Tensor], reset: Mapping[str, Tensor]) -> None:
        """Undo what has been done since a copy was made."""
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])
        self.reset = {name: mask.clone() for name, mask in reset.items()}

    def generator(self, layer: str) -> torch.Generator:
        """Return the random numbers of one layer in this attempt, the same whatever else is treated."""
        place = ROUND * self.attempt + list(self.layers).index(layer)
        return torch.Generator().manual_seed((self.seed * 1_000_003 + place) % 2**63)

    def rounded(self, name: str, values: Tensor) -> Tensor:
        """Return values as the checkpoint can hold them."""
        return values.to(self.dtypes.get(name, values.dtype)).to(values.dtype)

    def set_rows(self, slot: Slot, nodes: Tensor, rows: Tensor) -> None:
        """Set the entries of some nodes in a parameter, and let the optimiser forget them.

        Args:
            slot: the parameter, and how nodes lie in it.
            nodes: their indices.
            rows: ``(nodes, width)``.
        """
        tensor = self.tensors()[slot.parameter]
        every = slot.rows(tensor).clone()
        every[nodes] = self.rounded(slot.parameter, rows.to(every))
        tensor.copy_(slot.parameter_of(every))
        marked = torch.zeros(slot.nodes, slot.width, dtype=torch.bool)
        marked[nodes] = True
        self.forget(slot.parameter, slot.parameter_of(marked))

    def forget(self, name: str, mask: Tensor) -> None:
        """Let the optimiser forget some entries of a parameter."""
        self.reset[name] = self.reset[name] | mask if name in self.reset else mask

    def replay(self, gradients: bool = False) -> Replayed:
        """Run the network over the probe."""
        return replay(self.model, self.probe, self.seed, gradients)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hold the model in eval mode while it is read."""
        with undisturbed(self.model, self.seed):
            yield

    def edits(self) -> Edits:
        """Return what is different from the network that came in."""
        values = {
            name: tensor.clone()
            for name, tensor in self.tensors().items()
            if not _same(tensor, self._before[name])
        }
        return Edits(values=values, reset={name: mask for name, mask in self.reset.items() if mask.any()})


def _same(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other) or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
