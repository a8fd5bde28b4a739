"""Fresh weights for a layer, from its own initialiser or from one that the user names."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nndiag.errors import UsageError
from nndiag.replay.kinds import Layer

DEFAULT = "default"
INITIALISERS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "kaiming_normal": lambda t, g: nn.init.kaiming_normal_(t, nonlinearity="relu", generator=g),
    "kaiming_uniform": lambda t, g: nn.init.kaiming_uniform_(t, nonlinearity="relu", generator=g),
    "xavier_normal": lambda t, g: nn.init.xavier_normal_(t, generator=g),
    "xavier_uniform": lambda t, g: nn.init.xavier_uniform_(t, generator=g),
    "orthogonal": lambda t, g: nn.init.orthogonal_(t, generator=g),
}
"""Initialisers by name; a matrix of one row for each node is drawn, for a recurrent one a row for each gate."""


def check_initialiser(name: str, where: str = "--init") -> None:
    """Make sure that there is such an initialiser, named by an option or a key of a file.

    Raises:
        UsageError: there is none.
    """
    if name != DEFAULT and name not in INITIALISERS:
        known = ", ".join([DEFAULT, *INITIALISERS])
        raise UsageError(f"{where} {name}", "there is no such initialiser", f"use one of {known}")


def fresh(model: nn.Module, layer: Layer, name: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Return fresh values for the weights and biases of a layer, by the names of the parameters.

    By default they are drawn as the model itself does: by ``_init_weights`` of a Hugging Face model, by the module's
    own ``reset_parameters`` (every module of torch has one, an attention one with an underscore), and where there is
    neither uniformly in ``±1/√fan_in``.

    Args:
        model: the network.
        layer: the layer.
        name: an initialiser, or ``"default"``.
        generator: where the random numbers come from.
    """
    drawn = _by_module(model, layer, generator)
    found = {slot.parameter: _uniform(slot.shape, layer.fan_in, generator) for slot in layer.slots}
    found |= {slot.parameter: drawn[slot.parameter] for slot in layer.slots if slot.parameter in drawn}
    if name != DEFAULT and layer.fan_in > 1:
        for slot in layer.weights:
            rows = torch.empty(slot.nodes * slot.outer, slot.width // slot.outer)
            values = INITIALISERS[name](rows.to(found[slot.parameter].dtype), generator)
            each = values.reshape(slot.outer, slot.nodes, -1).transpose(0, 1).flatten(1)
            found[slot.parameter] = slot.parameter_of(each)
    return found


def _by_module(model: nn.Module, layer: Layer, generator: torch.Generator) -> dict[str, Tensor]:
    """Let the owner of the parameters draw them, in a copy."""
    path = _owner(model, layer)
    if path is None:
        return {}
    module = copy.deepcopy(model.get_submodule(path)).cpu().float()
    seed = int(torch.randint(2**62, (), generator=generator))
    own = "_reset_parameters" if isinstance(module, nn.MultiheadAttention) else "reset_parameters"
    reset, of_model = getattr(module, own, None), getattr(model, "_init_weights", None)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        if callable(of_model) and isinstance(of_model.__self__, nn.Module):
            for part in module.modules():
                part.__dict__.pop("_is_hf_initialized", None)
            of_model(module)
        elif callable(reset):
            reset()
        else:
            return {}
    prefix = f"{path}." if path else ""
    return {prefix + name: p.detach() for name, p in module.named_parameters(remove_duplicate=False)}


def _owner(model: nn.Module, layer: Layer) -> str | None:
    """Return the path of the module that holds all of a layer's parameters itself."""
    paths = {slot.parameter.rpartition(".")[0] for slot in layer.slots}
    if len(paths) != 1:
        return None
    path = paths.pop()
    own = dict(model.get_submodule(path)._parameters)
    return path if all(slot.parameter.rpartition(".")[2] in own for slot in layer.slots) else None


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(max(fan_in, 1))
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
