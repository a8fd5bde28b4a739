"""Leaving a model exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Put the model in eval mode with every floating parameter differentiable, and put everything back
    afterwards.

    Restored, also after an error: the mode of every module, ``requires_grad`` and ``.grad`` of every
    parameter, every
    buffer, the random state of torch on the CPU and on every CUDA device.

    Args:
        model: the model.
        seed: seed of torch's generators inside the block.
    """
    modes = {module: module.training for module in model.modules()}
    grads = {p: (p.requires_grad, p.grad) for p in model.parameters()}
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        try:
            model.eval()
            for parameter in grads:
                parameter.requires_grad_(parameter.is_floating_point())
                parameter.grad = None
            with torch.enable_grad():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for parameter, (wanted, grad) in grads.items():
                parameter.requires_grad_(wanted)
                parameter.grad = grad
            _restore(buffers)


def _restore(buffers: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted(d.index for d in devices if d.index is not None)
