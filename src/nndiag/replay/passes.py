"""Forward and backward passes over one batch, with what they show of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from nndiag.config.callables import reason
from nndiag.errors import ModelError, NndiagError
from nndiag.replay.kinds.base import Layer
from nndiag.replay.watch import Call, Observer, Watch


@dataclass(frozen=True)
class Forward:
    """One forward pass: the network's output, ``(batch, ...)``, and every call of a layer, in order."""

    output: Tensor
    calls: tuple[Call, ...]
    watch: Watch

    def gradients(self, seed: Tensor) -> list[Tensor]:
        """Return, per call, ``∂⟨output, seed⟩/∂z`` as ``(batch, nodes, positions)``; the graph is kept."""
        return self._split(self._grad([call.edge for call in self.calls], seed))

    def gradients_and_parameters(
        self, seed: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the same, and the gradient of every parameter (``None`` where it does not matter)."""
        edges = [call.edge for call in self.calls]
        grads = self._grad([*edges, *parameters], seed)
        return self._split(grads[: len(edges)]), list(grads[len(edges) :])

    def _grad(self, inputs: Sequence[object], seed: Tensor) -> tuple[Tensor | None, ...]:
        if not inputs or not self.output.requires_grad:
            return (None,) * len(inputs)
        return torch.autograd.grad(
            self.output,
            inputs,  # type: ignore[arg-type]  # edges are accepted beside tensors
            grad_outputs=seed,
            retain_graph=True,
            allow_unused=True,
        )

    def _split(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        found = []
        for call, grad in zip(self.calls, grads, strict=True):
            full = grad if grad is not None else self.output.new_zeros(call.shape)
            found.append(call.units.split(full.detach()))
        return found


def forward(
    model: nn.Module, inputs: Sequence[Tensor], layers: Mapping[int, Layer], observer: Observer
) -> Forward:
    """Run the model on one batch and watch.

    Args:
        model: in the mode in which it is to be examined.
        inputs: positional arguments of the model, each ``(batch, ...)``.
        layers: the layer of every weight, by the identity of the parameter.
        observer: told of the units while their values exist.

    Raises:
        ModelError: the model raised, or its output is not one row a sample.
    """
    constants = frozenset(id(t) for t in chain(model.parameters(), model.buffers()))
    watch = Watch(layers, observer, constants)
    try:
        with watch:
            raw = model(*inputs)
            output = main_output(raw)
    except NndiagError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        why = f"it failed on probe inputs of shape {shapes}: {reason(error)}"
        raise ModelError("model", why, "give a probe whose x is what the model takes") from error
    watch.finish()
    if output.dim() == 0 or output.shape[0] != inputs[0].shape[0]:
        why = f"its output has shape {tuple(output.shape)} for {inputs[0].shape[0]} samples"
        raise ModelError("model", why, "let it return one row a sample, samples first")
    return Forward(output, tuple(watch.calls), watch)


def main_output(raw: object) -> Tensor:
    """Return the tensor that a model's output is about: itself, ``logits``, or the first tensor.

    Raises:
        TypeError: there is none.
    """
    if isinstance(raw, Tensor):
        return raw
    if isinstance(raw, Mapping):
        raw = [raw["logits"]] if "logits" in raw else list(raw.values())
    if isinstance(raw, tuple | list):
        for item in raw:
            if isinstance(item, Tensor):
                return item
    raise TypeError(f"its output is a {type(raw).__name__} without a tensor")
