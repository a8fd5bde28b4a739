"""The blocks of single nodes in float64, with every column, and all their eigenvalues: what the tables' errors are
against.

Written with plain hooks and ``unfold``, and nothing of what it checks: cross-entropy, Linear and Conv2d.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.problems import Case

BATCH = 64


def dense_eigenvalues(case: Case, nodes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the eigenvalues of ``G_i = (1/N) Σ_{n,c} J_{n,c,i} J_{n,c,i}ᵀ``, ascending.

    Args:
        case: network and probe; the loss is the mean cross-entropy.
        nodes: which nodes of which layer, by the layer's name.

    Returns:
        Per layer ``(nodes, size)`` float64, in the order of ``nodes``.
    """
    model = copy.deepcopy(case.model).double()
    modules = {name: module for name, module in model.named_modules() if name in nodes}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(_keeper(name, inputs, outputs))
    sums: dict[str, Tensor] = {}
    for x in case.probe.inputs[0].split(BATCH):
        logits = model(x.double() if x.is_floating_point() else x)
        gradients = [
            torch.autograd.grad(logits, list(outputs.values()), column, retain_graph=True)
            for column in _columns(logits.detach())
        ]
        for place, name in enumerate(outputs):
            own = [found[place] for found in gradients]
            rows = _jacobians(modules[name], inputs[name], own, nodes[name])
            if name not in sums:
                sums[name] = rows.new_zeros(len(rows), rows.shape[2], rows.shape[2])
            sums[name].baddbmm_(rows.mT, rows, alpha=1 / len(case.probe))
    return {name: torch.linalg.eigvalsh(blocks) for name, blocks in sums.items()}


def _keeper(name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]):
    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[name], outputs[name] = args[0].detach(), output

    return keep


def _columns(logits: Tensor) -> list[Tensor]:
    """Return ``√p_c (e_c − p)`` for every class: ``diag(p) − ppᵀ`` is the sum of their squares."""
    p = logits.softmax(dim=1)
    unit = torch.eye(p.shape[1]).to(p)
    return [p[:, c, None].sqrt() * (unit[c] - p) for c in range(p.shape[1])]


def _jacobians(module: nn.Module, x: Tensor, gradients: list[Tensor], nodes: Tensor) -> Tensor:
    """Return rows whose squares add up to ``Σ_c J_{n,c} J_{n,c}ᵀ``, ``(nodes, rows, size)``, a bias last."""
    if isinstance(module, nn.Conv2d):
        a = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        own = torch.stack([g.flatten(2)[:, nodes] for g in gradients])
    else:
        a = x.reshape(len(x), -1, x.shape[-1]).mT
        own = torch.stack([g.reshape(len(g), -1, g.shape[-1]).mT[:, nodes] for g in gradients])
    if module.bias is not None:
        a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
    if a.shape[2] == 1:  # the columns of a sample are multiples of one vector
        return own.square().sum(dim=0).sqrt().movedim(1, 0) * a.mT.movedim(1, 0)
    return (own @ a.mT).flatten(0, 1).movedim(1, 0)
