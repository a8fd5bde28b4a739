"""Layers applied once: ``H_i = (1/N) Σ_n A_nᵀ h_{n,i} A_n`` with signed ``h_{n,i} = ∂²ℓ_n/∂z_{n,i}²``.

``A_n`` are the inputs at every position of a sample, ``(T, size)``, ``z_{n,i}`` what node ``i`` puts out there. One
second backward pass a node and position gives a column of ``h`` for all samples at once, since ``z_n`` reaches no loss
but ``ℓ_n``; the block is then known, and no further product needs the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from nndiag.measures.blocks import OuterBlocks
from nndiag.measures.exact.positions import PositionBlocks
from nndiag.measures.hvp import batched_second, explained, first_derivatives, mean_loss, second_order
from nndiag.probe.probe import Batch, Probe
from nndiag.replay.called import plain_name
from nndiag.replay.kinds import BY_FUNCTION, ColumnKind, Samples, Share, Use
from nndiag.replay.linearity import tensors_in

if TYPE_CHECKING:
    from nndiag.replay.kinds import Layer


@dataclass(frozen=True)
class Application:
    """The one use of a layer in a forward pass, and where the gradient at its output, of ``shape``, is taken."""

    share: Share
    output: GradientEdge
    shape: torch.Size

    @property
    def positions(self) -> int:
        """How many positions a sample has."""
        use = self.share.uses[0]
        rows = math.prod(use.kind.leading(use, self.shape))
        return math.prod(self.shape) // (use.samples.batch(rows) * use.layer.nodes)

    @cached_property
    def inputs(self) -> Tensor:
        """``A``, ones last for a bias, ``(batch, positions, size)``."""
        kind = self.share.kind
        assert isinstance(kind, ColumnKind)
        return ColumnKind.inputs(kind, self.share)[:, 0].mT

    @cached_property
    def entries(self) -> Tensor:
        """Where ``z`` lies in the flattened output, ``(batch, nodes, positions)``."""
        places = torch.arange(math.prod(self.shape), device=self.share.uses[0].input.device)
        return self.share.kind.gather(self.share, [places.reshape(self.shape)])[:, :, 0]


def positions_of(model: nn.Module, probe: Probe, layers: Sequence[Layer], room: int) -> dict[str, int]:
    """Return how many positions a sample has in layers, by name, where that is a way to know their blocks.

    It is in those that are applied once, to inputs that their nodes share, at no more positions than a node has
    parameters; and where the inputs of the whole probe take no more than ``room`` bytes.
    """
    value, found = _applied(model, probe, next(probe.batches()), layers)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = {}
    while found:
        name, use = found.popitem()
        size, positions = use.share.layer.size, use.positions
        kept = len(probe) * positions * size * parameters[use.share.layer.names[0]].element_size()
        affordable = positions == 1 or (positions <= size and kept <= room)
        if affordable and _is_all(value, use, parameters):
            known[name] = positions
    return known


def _is_all(value: Tensor, use: Application, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a layer's gradient is that of its one use: no function that cannot be seen uses it too."""
    if not value.requires_grad:
        return True
    layer = use.share.layer
    own = [parameters[name] for name in layer.names]
    (at_output,) = torch.autograd.grad(value, use.output, retain_graph=True, materialize_grads=True)
    at_parameters = torch.autograd.grad(value, own, retain_graph=True, materialize_grads=True)
    gradient = at_output.flatten()[use.entries]
    seen = gradient.movedim(1, 0).flatten(1) @ use.inputs.flatten(0, 1)
    rows = layer.rows(dict(zip(layer.names, at_parameters, strict=True)))
    rounding = torch.finfo(rows.dtype).eps ** (1 / 3)
    accepted = rounding * rows.norm() + rounding**2 * at_output.norm() * use.inputs.norm()
    return not bool((seen - rows).norm() > accepted)


def signed_blocks(
    model: nn.Module, probe: Probe, layer: Layer, nodes: Tensor, at_once: int
) -> OuterBlocks | PositionBlocks | None:
    """Return the exact blocks of some nodes of a layer that is applied once.

    Args:
        model: the model.
        probe: samples, targets and loss.
        layer: one of ``positions_of``.
        nodes: which nodes, ``(k,)``.
        at_once: how many vectors go through one batched pass.

    Returns:
        The blocks; ``None`` where a later batch uses the layer in another way than the first.
    """
    inputs: list[Tensor] = []
    curvature, folds = [], []
    for batch in probe.batches():
        value, found = _applied(model, probe, batch, [layer])
        use = found.get(layer.name)
        if use is None or (inputs and use.inputs.shape[1:] != inputs[0].shape[1:]):
            return None
        inputs.append(use.inputs)
        curvature.append(_second_derivatives(value * len(probe), use, nodes, at_once))
        folds.append(probe.fold_of(batch).to(use.inputs.device))
    parts = torch.cat(inputs), torch.cat(curvature), torch.cat(folds)
    if parts[0].shape[1] > 1:
        return PositionBlocks(*parts, len(probe))
    return OuterBlocks(parts[0][:, 0], parts[1][:, :, 0, 0], parts[2], len(probe), semidefinite=False)


def _second_derivatives(total: Tensor, use: Application, nodes: Tensor, at_once: int) -> Tensor:
    """Return ``h`` of some nodes, ``(batch, k, positions, positions)``."""
    batch, _, positions = use.entries.shape
    found = use.inputs.new_zeros(len(nodes), positions, batch, positions)
    gradient = first_derivatives(total, (use.output,))[0] if total.requires_grad else None
    if gradient is not None and gradient.requires_grad:
        places = use.entries[:, nodes.to(use.entries.device)].movedim(0, 2)  # (k, positions, batch)
        columns = found.flatten(0, 1)
        for start in range(0, len(columns), at_once):
            part = slice(start, start + at_once)
            seeds = gradient.new_zeros(len(columns[part]), gradient.numel())
            seeds.scatter_(1, places.flatten(0, 1)[part], 1.0)
            own = places.movedim(1, 2).flatten(1).repeat_interleave(positions, dim=0)[part]
            images = _images(gradient, use.output, seeds.reshape(-1, *gradient.shape)).flatten(1)
            columns[part] = images.gather(1, own).reshape(-1, batch, positions)
    found = found.permute(2, 0, 1, 3)
    return (found + found.mT) / 2


def _images(gradient: Tensor, output: GradientEdge, seeds: Tensor) -> Tensor:
    """Return ``∂⟨gradient, seed⟩/∂output`` of every seed, shaped like them."""
    parts = batched_second(gradient, (output,), seeds)
    if parts is not None:
        return torch.zeros_like(seeds) if parts[0] is None else parts[0]
    images = []
    for seed in seeds:
        with explained():
            (one,) = torch.autograd.grad(gradient, (output,), seed, retain_graph=True, allow_unused=True)
        images.append(torch.zeros_like(seed) if one is None else one)
    return torch.stack(images)


def _applied(
    model: nn.Module, probe: Probe, batch: Batch, layers: Sequence[Layer]
) -> tuple[Tensor, dict[str, Application]]:
    """Run a batch; return its share of the mean loss, and the layers that have one use."""
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
        samples: how many the batch has.
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
            if len(used) == 1 and name not in self.found and isinstance(result, Tensor):
                use = self._application(layer, plain_name(func, args, kwargs)[0], args, kwargs, result)
            self.found[name] = use
        return result

    def _application(
        self, layer: Layer, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> Application | None:
        kind = BY_FUNCTION.get(name)
        if not isinstance(kind, ColumnKind) or kind.elementwise or layer.groups > 1:
            return None
        given = {**dict(zip(kind.functions[name], args, strict=False)), **kwargs}
        own = [given.pop(part) for part in ("weight", "bias") if given.get(part) is not None]
        if tuple(map(id, own)) != self._parameters[layer.name] or len(layer.weights) != 1:
            return None
        inputs = {part: value.detach() for part, value in given.items() if isinstance(value, Tensor)}
        options = {part: v for part, v in given.items() if v is not None and not isinstance(v, Tensor)}
        use = Use(kind, layer, layer.weights[0], next(iter(layer.biases), None), inputs, options)
        if use.weight.outer * use.weight.inner > 1 or not result.numel() or not kind.fits(use, result):
            return None
        samples = _samples(kind.leading(use, result.shape), self._samples)
        if samples is None:
            return None
        share = Share((use.with_samples(samples),), (0,))
        return Application(share, get_gradient_edge(result), result.shape)


def _samples(leading: Sequence[int], count: int) -> Samples | None:
    """Return where the samples are among rows along so many axes: along the first one that is as long."""
    if count not in leading:
        return None
    axis = list(leading).index(count)
    return Samples(math.prod(leading[:axis]), math.prod(leading[axis + 1 :]))
