"""Which layers a model has: found from its modules, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nndiag.replay.kinds import KINDS, Layer


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Return the measurable layers in the order in which the model registers them, each once."""
    found = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for kind in KINDS:
            layer = kind.describe(name, module, prefix)
            if layer is not None and _own_parameters(layer, module):
                found.append(layer)
                break
    return tuple(found)


def _own_parameters(layer: Layer, module: nn.Module) -> bool:
    """Whether the weights are parameters, and not computed from others by a parametrisation."""
    names = [layer.weight] + ([layer.bias] if layer.bias else [])
    return all(isinstance(module._parameters.get(n.rsplit(".", 1)[-1]), nn.Parameter) for n in names)


def unmeasured(model: nn.Module, layers: Sequence[Layer]) -> tuple[tuple[str, str], ...]:
    """Return every parameter that belongs to no layer, with the reason."""
    covered = {layer.weight for layer in layers} | {layer.bias for layer in layers}
    owners = {id(p): n for n, p in model.named_parameters(remove_duplicate=False) if n in covered}
    modules = dict(model.named_modules())
    return tuple(
        (name, f"{type(modules[name.rpartition('.')[0]]).__name__} parameters are not measured")
        for name, parameter in model.named_parameters()
        if id(parameter) not in owners
    )


def owners(model: nn.Module, layers: Sequence[Layer]) -> Mapping[int, Layer]:
    """Return the layer of every weight, by the identity of the parameter."""
    by_weight = {layer.weight: layer for layer in layers}
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return {id(named[weight]): layer for weight, layer in reversed(by_weight.items())}
