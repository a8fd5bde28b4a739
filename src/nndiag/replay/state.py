"""Leaving a model exactly as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from nndiag.replay.overwriting import nothing_overwritten

_GENERATOR = "_checkpoint_without_reentrant_generator"
"""What torch runs around a checkpointed part, where it is not reentrant."""


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Put the model in eval mode with every floating parameter differentiable, and put everything back
    afterwards.

    Restored, also after an error: the mode and every other attribute of every module, ``requires_grad`` and ``.grad``
    of every parameter, the numbers of those that the model changes as it runs, every buffer (its values, and which
    tensor it is where the model puts another in its place), the weight of embeddings that scale what is looked up
    (``max_norm``), and the random state of torch on the CPU and on the CUDA devices that the model is on. No other
    device is seeded.

    Inside, derivatives are those of the function that the model is: hooks that change gradients are put aside, and rows
    of embeddings are not weighed by how often they are looked up (``scale_grad_by_freq``). Nothing is checkpointed.

    Args:
        model: the model.
        seed: seed of torch's generators inside the block.
    """
    modes = {module: module.training for module in model.modules()}
    grads = {p: (p.requires_grad, p.grad, p._backward_hooks) for p in model.parameters()}
    places = {m: dict(m._buffers) for m in model.modules() if isinstance(m._buffers, dict)}
    scaled = [
        m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm
    ]
    values = [(b, b.detach().clone()) for b in (*model.buffers(), *scaled)]
    devices = _cuda_devices(model)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        _seed(seed, devices)
        stack.enter_context(same_attributes(model))
        stack.enter_context(_without_checkpoints())
        try:
            _prepare(model)
            with nothing_overwritten(model), torch.enable_grad():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for parameter, (wanted, grad, hooks) in grads.items():
                parameter.requires_grad_(wanted)
                parameter.grad, parameter._backward_hooks = grad, hooks
            for module, held in places.items():
                module._buffers.clear()
                module._buffers.update(held)
            _restore(values)


@contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Put back what modules keep in attributes, such as the last activations or a table made for the last batch."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, held in attributes.items():
            now = vars(module)
            for name in now.keys() - held.keys():
                del now[name]
            now.update(held)


def _prepare(model: nn.Module) -> None:
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.scale_grad_by_freq = False
        if not isinstance(module, torch.jit.ScriptModule):
            module._backward_hooks = type(module._backward_hooks)()
            module._backward_pre_hooks = type(module._backward_pre_hooks)()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        parameter.grad, parameter._backward_hooks = None, None


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Let checkpointed parts run like any other.

    ``torch.autograd.grad`` cannot go through reentrant checkpoints; the others run a part a second time in the backward
    pass, unwatched, where fused functions are not done in the parts that can be seen.
    """

    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)

    def around(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    inside = getattr(checkpoint, _GENERATOR, None)
    checkpoint.CheckpointFunction.apply = apply  # type: ignore[method-assign]
    setattr(checkpoint, _GENERATOR, around)
    try:
        yield
    finally:
        del checkpoint.CheckpointFunction.apply
        setattr(checkpoint, _GENERATOR, inside)


def _seed(seed: int, devices: list[int]) -> None:
    """Seed the CPU and these devices; ``torch.manual_seed`` would seed every device there is."""
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


def _restore(values: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, before in values:
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted(d.index for d in devices if d.index is not None)
