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
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nndiag.measures.blocks import GramBlocks, OuterBlocks
from nndiag.measures.exact.positions import PositionBlocks
from nndiag.measures.hvp import batched_second, explained, first_derivatives, mean_loss, second_order
from nndiag.probe.probe import Batch, Probe
from nndiag.replay import attention
from nndiag.replay.called import plain_name
from nndiag.replay.kinds import BY_FUNCTION, ColumnKind, Samples, Share, Use
from nndiag.replay.linearity import tensors_in

if TYPE_CHECKING:
    from nndiag.replay.kinds import Layer


@dataclass(frozen=True)
class Positions:
    """How many positions a sample has, and which axis of the rows of the output counts samples."""

    count: int
    axis: int


@dataclass(frozen=True)
class Application:
    """The one use of a layer in a forward pass, and where the gradient at its output, of ``shape``, is taken.

    ``axis`` is that of the samples.
    """

    share: Share
    output: GradientEdge
    shape: torch.Size
    axis: int

    @property
    def positions(self) -> Positions:
        """What there is of them."""
        use = self.share.uses[0]
        rows = math.prod(use.kind.leading(use, self.shape))
        return Positions(math.prod(self.shape) // (use.samples.batch(rows) * use.layer.nodes), self.axis)

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


def positions_of(model: nn.Module, probe: Probe, layers: Sequence[Layer]) -> dict[str, Positions]:
    """Return the positions that a sample has in layers, by name, where these are a way to know their blocks.

    They are in those that are applied once, to inputs that their nodes share, at no more positions than a node has
    parameters.
    """
    value, found = _applied(model, probe, next(probe.batches()), layers)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = {}
    while found:
        name, use = found.popitem()
        if use.positions.count <= use.share.layer.size and _is_all(value, use, parameters):
            known[name] = use.positions
    return known


def vectors_of(layer: Layer, positions: Mapping[str, Positions]) -> int:
    """Return how many vectors it takes to know the exact block of one node."""
    return positions[layer.name].count if layer.name in positions else layer.size


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
    model: nn.Module,
    probe: Probe,
    layer: Layer,
    positions: Positions,
    nodes: Tensor,
    at_once: int,
    summed: bool = False,
) -> OuterBlocks | PositionBlocks | GramBlocks | None:
    """Return the exact blocks of some nodes of a layer that is applied once.

    Args:
        model: the model.
        probe: samples, targets and loss.
        layer: one of ``positions_of``.
        positions: those of the layer.
        nodes: which nodes, ``(k,)``.
        at_once: how many vectors go through one batched pass.
        summed: whether to add the blocks up batch by batch, for what is kept not to grow with the probe.

    Returns:
        The blocks; ``None`` where a later batch uses the layer in another way than the first.
    """
    kept, sums = [], None
    for batch in probe.batches():
        value, found = _applied(model, probe, batch, [layer], positions.axis)
        use = found.get(layer.name)
        if use is None or use.positions != positions:
            return None
        curvature = _second_derivatives(value * len(probe), use, nodes, at_once)
        part = use.inputs, curvature, probe.fold_of(batch).to(use.inputs.device)
        if summed:
            sums = _added(sums, *part, probe.fold_count)
        else:
            kept.append(part)
    if sums is not None:
        return GramBlocks(sums, sums.sum(dim=0) / len(probe), len(probe), layer.size, semidefinite=False)
    inputs, curvature, folds = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if positions.count > 1:
        return PositionBlocks(inputs, curvature, folds, len(probe))
    return OuterBlocks(inputs[:, 0], curvature[:, :, 0, 0], folds, len(probe), semidefinite=False)


def _added(sums: Tensor | None, inputs: Tensor, curvature: Tensor, owners: Tensor, folds: int) -> Tensor:
    """Add ``Σ_n A_nᵀ h_{n,i} A_n`` of a batch to the sums of the folds that own its samples."""
    size = inputs.shape[2]
    if sums is None:
        sums = inputs.new_zeros(folds, curvature.shape[1], size, size)
    for fold in range(folds):
        own = owners == fold
        rows = inputs[own].flatten(0, 1).T
        for node in range(curvature.shape[1]):
            sums[fold, node].addmm_(rows, (curvature[own, node] @ inputs[own]).flatten(0, 1))
    return sums


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
    model: nn.Module, probe: Probe, batch: Batch, layers: Sequence[Layer], axis: int | None = None
) -> tuple[Tensor, dict[str, Application]]:
    """Run a batch; return its share of the mean loss, and the layers that have one use, with samples along an axis
    that may be known.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    watch = _Applications(
        {id(parameters[name]): layer for layer in layers for name in layer.names},
        {layer.name: tuple(id(parameters[name]) for name in layer.names) for layer in layers},
        len(batch),
        axis,
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
        axis: along which axis of the rows of outputs they are; ``None`` for the first one that is as long.
    """

    def __init__(
        self,
        owners: Mapping[int, Layer],
        parameters: Mapping[str, tuple[int, ...]],
        samples: int,
        axis: int | None,
    ) -> None:
        super().__init__()
        self.found: dict[str, Application | None] = {}
        self._owners, self._parameters, self._samples, self._axis = owners, parameters, samples, axis

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        used = self._owned((args, kwargs))
        name, _ = plain_name(func, args, kwargs)
        if used and name == "multi_head_attention_forward":
            return self._attend(func, attention.arguments(args, kwargs))
        result = func(*args, **kwargs)
        if not used or not any(t.requires_grad for t in tensors_in(result)):
            return result
        for layer in used:
            use = None
            if len(used) == 1 and layer.name not in self.found and isinstance(result, Tensor):
                use = self._application(layer, name, args, kwargs, result)
            self.found[layer.name] = use
        return result

    def _owned(self, values: object) -> list[Layer]:
        """Return the layers that own parameters among values."""
        owned = (self._owners.get(id(tensor)) for tensor in tensors_in(values))
        return list({layer.name: layer for layer in owned if layer is not None}.values())

    def _attend(self, func: Callable[..., Any], given: Mapping[str, Any]) -> Any:
        """Project, attend and project back, each seen by itself."""
        with self:
            parts = attention.projected(given)
        attended, *rest = attention.attend(func, given, parts)
        for layer in self._owned((given["bias_k"], given["bias_v"])):
            self.found[layer.name] = None
        with self:
            output = F.linear(attended, given["out_proj_weight"], given["out_proj_bias"])
        return (output, *rest)

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
        leading = list(kind.leading(use, result.shape))
        axes = [a for a, n in enumerate(leading) if n == self._samples and self._axis in (None, a)]
        if not axes:
            return None
        axis = axes[0]
        samples = Samples(math.prod(leading[:axis]), math.prod(leading[axis + 1 :]))
        share = Share((use.with_samples(samples),), (0,))
        return Application(share, get_gradient_edge(result), result.shape, axis)
