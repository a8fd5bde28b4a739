"""Forward and backward passes over one batch, with what they show of every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from nndiag.config.callables import reason
from nndiag.errors import ModelError, NndiagError
from nndiag.replay.layers import Owners
from nndiag.replay.watch import Call, Observer, Watch


@dataclass(frozen=True)
class Forward:
    """One forward pass: the network's output, ``(batch, ...)``, and every call of a layer, in order."""

    output: Tensor
    calls: tuple[Call, ...]
    watch: Watch

    def gradients(self, seed: Tensor, wanted: Callable[[str], bool] = lambda _: True) -> list[Tensor]:
        """Return, per call, ``∂⟨output, seed⟩`` with respect to what the layer put out; the graph is kept.

        Calls that are only looked at, or whose layer's name is not wanted, get an empty tensor.
        """
        asked = [call.edge is not None and wanted(call.layer.name) for call in self.calls]
        edges = [call.edge for call, ask in zip(self.calls, asked, strict=True) if ask and call.edge]
        return self._filled(self._grad(edges, seed), asked)

    def gradients_and_parameters(
        self, seed: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the same, and the gradient of every parameter (``None`` where it does not matter)."""
        edges = self._edges
        grads = self._grad([*edges, *parameters], seed)
        asked = [call.edge is not None for call in self.calls]
        return self._filled(grads[: len(edges)], asked), list(grads[len(edges) :])

    @property
    def _edges(self) -> list[GradientEdge]:
        return [call.edge for call in self.calls if call.edge is not None]

    def _grad(self, inputs: Sequence[object], seed: Tensor) -> tuple[Tensor | None, ...]:
        if not inputs or not self.output.requires_grad:
            return (None,) * len(inputs)
        try:
            return torch.autograd.grad(
                self.output,
                inputs,  # type: ignore[arg-type]  # edges are accepted beside tensors
                grad_outputs=seed,
                retain_graph=True,
                allow_unused=True,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the user's code may raise anything
            why = f"its gradients cannot be taken: {reason(error)}"
            raise ModelError("model", why, "use --level activations") from error

    def _filled(self, grads: Sequence[Tensor | None], asked: Sequence[bool]) -> list[Tensor]:
        found, following = [], iter(grads)
        for call, ask in zip(self.calls, asked, strict=True):
            if not ask:
                found.append(self.output.new_zeros(0))
                continue
            grad = next(following)
            if grad is None:
                found.append(self.output.new_zeros(call.shape, dtype=call.dtype))
            else:
                found.append(grad.detach().to(call.dtype))
        return found


def forward(
    model: nn.Module,
    inputs: Sequence[Tensor],
    owners: Owners,
    observer: Observer,
    watching: type[Watch] = Watch,
) -> Forward:
    """Run the model on one batch and watch.

    Args:
        model: in the mode in which it is to be examined.
        inputs: positional arguments of the model, each ``(batch, ...)``.
        owners: the layer and slot of every parameter, by the identity of the parameter.
        observer: told of the units while their values exist.
        watching: how.

    Raises:
        ModelError: the model raised, or its output is not one row a sample.
    """
    watch = watching(owners, observer, tuple(chain(model.parameters(), model.buffers())))
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
    watch.finish(output)
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
