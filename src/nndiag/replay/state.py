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
    parameter, every buffer (its values, and which tensor it is where the model puts another in its place), the
    weight of embeddings that scale what is looked up (``max_norm``), and the random state of torch on the CPU and on
    the CUDA devices that the model is on. No other device is seeded.

    Args:
        model: the model.
        seed: seed of torch's generators inside the block.
    """
    modes = {module: module.training for module in model.modules()}
    grads = {p: (p.requires_grad, p.grad) for p in model.parameters()}
    places = {m: dict(m._buffers) for m in model.modules() if isinstance(m._buffers, dict)}
    scaled = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm]
    values = [(b, b.detach().clone()) for b in (*model.buffers(), *scaled)]
    devices = _cuda_devices(model)
    with torch.random.fork_rng(devices=devices):
        _seed(seed, devices)
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
            for module, held in places.items():
                module._buffers.clear()
                module._buffers.update(held)
            _restore(values)


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
