"""Layers with one position a sample: ``H_i = (1/N) Σ_n h_{n,i} ã_n ã_nᵀ`` with signed ``h_{n,i} = ∂²ℓ_n/∂z_{n,i}²``.

One second backward pass a node gives ``h`` for all samples at once, since ``z_n`` reaches no loss but ``ℓ_n``; its
block is then known, and no further product needs the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from nndiag.measures.blocks import OuterBlocks
from nndiag.measures.exact.places import places_of
from nndiag.measures.hvp import (
    HessianProducts,
    batched_second,
    explained,
    first_derivatives,
    mean_loss,
    second_order,
)
from nndiag.probe.probe import Batch, Probe
from nndiag.replay.linearity import tensors_in

if TYPE_CHECKING:
    from nndiag.replay.kinds import Layer


@dataclass(frozen=True)
class Application:
    """The one use of a layer in a forward pass: ``z = a Wᵀ + b`` with ``a`` of shape ``(batch, fan_in)``."""

    input: Tensor
    output: GradientEdge
    nodes: int


def single_positions(model: nn.Module, probe: Probe, layers: Sequence[Layer]) -> frozenset[str]:
    """Return the names of the layers whose nodes are rows of a matrix applied once to one vector a sample."""
    rows = [layer for layer in layers if _weight_then_bias(model, probe, layer)]
    value, found = _applied(model, probe, next(probe.batches()), rows)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = {layer.name: parameters[layer.names[0]] for layer in rows}
    return frozenset(name for name, use in found.items() if _is_all(value, use, weights[name]))


def _is_all(value: Tensor, use: Application, weight: Tensor) -> bool:
    """Whether a weight's gradient is that of its one use: no function that cannot be seen uses it too."""
    if not value.requires_grad:
        return True
    (at_output,) = torch.autograd.grad(value, use.output, retain_graph=True, materialize_grads=True)
    (at_weight,) = torch.autograd.grad(value, weight, retain_graph=True, materialize_grads=True)
    rounding = torch.finfo(weight.dtype).eps ** (1 / 3)
    accepted = rounding * at_weight.norm() + rounding**2 * at_output.norm() * use.input.norm()
    return not bool((at_output.T @ use.input - at_weight).norm() > accepted)


def signed_blocks(
    model: nn.Module, probe: Probe, layer: Layer, nodes: Tensor, at_once: int
) -> OuterBlocks | None:
    """Return the exact blocks of some nodes of a layer with one position a sample.

    Args:
        model: the model.
        probe: samples, targets and loss.
        layer: one of ``single_positions``.
        nodes: which nodes, ``(k,)``.
        at_once: how many nodes go through one batched pass.

    Returns:
        The blocks; ``None`` where a later batch uses the layer in another way than the first.
    """
    inputs, weights, folds = [], [], []
    for batch in probe.batches():
        value, found = _applied(model, probe, batch, [layer])
        if layer.name not in found:
            return None
        use = found[layer.name]
        ones = use.input.new_ones(len(use.input), layer.size - use.input.shape[1])
        inputs.append(torch.cat([use.input, ones], dim=1))
        weights.append(_second_derivatives(value * len(probe), use, nodes, at_once))
        folds.append(probe.fold_of(batch).to(use.input.device))
    return OuterBlocks(
        torch.cat(inputs), torch.cat(weights), torch.cat(folds), len(probe), semidefinite=False
    )


def _second_derivatives(total: Tensor, use: Application, nodes: Tensor, at_once: int) -> Tensor:
    """Return ``h`` of some nodes, ``(batch, k)``."""
    found = use.input.new_zeros(len(use.input), len(nodes))
    if not total.requires_grad:
        return found
    (gradient,) = first_derivatives(total, (use.output,))
    if gradient is None or not gradient.requires_grad:
        return found
    for start in range(0, len(nodes), at_once):
        part = nodes[start : start + at_once]
        seeds = gradient.new_zeros(len(part), *gradient.shape)
        seeds[torch.arange(len(part)), :, part] = 1
        found[:, start : start + len(part)] = _own_entries(gradient, use, seeds, part)
    return found


def _own_entries(gradient: Tensor, use: Application, seeds: Tensor, nodes: Tensor) -> Tensor:
    parts = batched_second(gradient, (use.output,), seeds)
    if parts is not None:
        if parts[0] is None:
            return gradient.new_zeros(len(gradient), len(nodes))
        return parts[0][torch.arange(len(nodes)), :, nodes].T
    columns = []
    for seed, node in zip(seeds, nodes.tolist(), strict=True):
        with explained():
            (one,) = torch.autograd.grad(gradient, (use.output,), seed, retain_graph=True, allow_unused=True)
        columns.append(gradient.new_zeros(len(gradient)) if one is None else one[:, node])
    return torch.stack(columns, dim=1)


def _weight_then_bias(model: nn.Module, probe: Probe, layer: Layer) -> bool:
    """Whether a node is a row of a matrix, with one entry of a vector last where there is a second parameter."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shapes = [tuple(parameters[name].shape) for name in layer.names]
    if len(shapes[0]) != 2 or shapes[0][0] != layer.nodes or shapes[1:] not in ([], [(layer.nodes,)]):
        return False
    wanted = torch.arange(shapes[0][0] * shapes[0][1]).reshape(shapes[0])
    if len(shapes) == 2:
        wanted = torch.cat([wanted, wanted.numel() + torch.arange(layer.nodes)[:, None]], dim=1)
    places = places_of(layer, HessianProducts(model, probe, layer.names))
    return torch.equal(places.cpu(), wanted)


def _applied(
    model: nn.Module, probe: Probe, batch: Batch, layers: Sequence[Layer]
) -> tuple[Tensor, dict[str, Application]]:
    """Run a batch; return its share of the mean loss, and the layers whose only use is one linear map of a vector."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    watch = _Applications(
        {id(parameters[name]): layer for layer in layers for name in layer.names},
        {layer.name: tuple(id(parameters[name]) for name in layer.names) for layer in layers},
        len(batch),
    )
    with second_order(model), watch:
        value = mean_loss(model, probe, batch)
    return value, {name: use for name, use in watch.found.items() if use is not None}


class _Applications(TorchFunctionMode):
    """Looks for linear maps with the parameters of a layer; a layer used in any other way, or again, is none.

    Args:
        owners: the layer of every parameter, by identity.
        parameters: the identities of the parameters of every layer, the weight first.
        samples: rows that an input must have.
    """

    def __init__(
        self, owners: Mapping[int, Layer], parameters: Mapping[str, tuple[int, ...]], samples: int
    ) -> None:
        super().__init__()
        self.found: dict[str, Application | None] = {}
        self._owners, self._parameters, self._samples = owners, parameters, samples

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        used = {self._owners[id(t)].name: self._owners[id(t)] for t in given if id(t) in self._owners}
        if not used or not any(t.requires_grad for t in tensors_in(result)):
            return result
        for name, layer in used.items():
            use = None
            if len(used) == 1 and name not in self.found and getattr(func, "__name__", "") == "linear":
                use = self._application(layer, given, result)
            self.found[name] = use
        return result

    def _application(self, layer: Layer, given: Sequence[Tensor], result: Tensor) -> Application | None:
        source, *parameters = given
        if tuple(id(p) for p in parameters) != self._parameters[layer.name]:
            return None
        if source.dim() != 2 or len(source) != self._samples:
            return None
        return Application(source.detach(), get_gradient_edge(result), layer.nodes)
