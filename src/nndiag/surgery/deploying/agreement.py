"""Whether two networks put out the same on a probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nndiag.config.callables import reason
from nndiag.surgery.deploying.tracing import Batches

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}
"""By precision, the share of an output's largest magnitude that removing what does nothing may change by rounding."""
ROUGH = 1e-2
"""The same for shorter numbers."""


_KEPT = 1 << 24
"""Numbers of outputs that are kept; more are computed again each time."""


class DisagreementError(Exception):
    """The changed network cannot be run, or puts out something else."""


class Reference:
    """What a network puts out on a probe, to compare changed copies with.

    Args:
        model: in eval mode; it has to stay as it is.
        batches: the probe.
    """

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        self.batches = batches
        self._model, self._limit = model, limit_of(model)
        first = _outputs(model, batches[0])
        small = sum(o.numel() for o in first) * len(batches) <= _KEPT
        self._kept = [first, *(_outputs(model, batch) for batch in batches[1:])] if small else None

    def change(self, other: nn.Module) -> float:
        """Return ``max |f'(x) − f(x)| / max |f(x)|`` over the probe, for the output for which it is largest.

        Raises:
            DisagreementError: the changed network fails, or its outputs have other shapes.
        """
        apart: list[float] = []
        scale: list[float] = []
        for turn, batch in enumerate(self.batches):
            wanted = self._kept[turn] if self._kept is not None else _outputs(self._model, batch)
            try:
                found = _outputs(other, batch)
            except Exception as error:  # code of the model's author, with other sizes than it was written for
                raise DisagreementError(f"its code fails with fewer units ({reason(error)})") from error
            if [o.shape for o in wanted] != [o.shape for o in found]:
                raise DisagreementError("its outputs would have other shapes")
            apart = _largest(apart, [_apart(a, b) for a, b in zip(wanted, found, strict=True)])
            scale = _largest(scale, [_size(torch.nan_to_num(a.double(), 0.0, 0.0, 0.0)) for a in wanted])
        return max((d / s if s else d for d, s in zip(apart, scale, strict=True)), default=0.0)

    def check(self, other: nn.Module) -> float:
        """Return the change of the outputs.

        Raises:
            DisagreementError: it is larger than rounding makes it.
        """
        change = self.change(other)
        if not change <= self._limit:
            raise DisagreementError(f"its outputs would change by {change:.2g} of their largest")
        return change


def limit_of(model: nn.Module) -> float:
    """Return the change of the outputs that rounding explains."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((LIMITS.get(dtype, ROUGH) for dtype in dtypes), default=ROUGH)


def _outputs(model: nn.Module, batch: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        leaves = tree_leaves(model(*(x.clone() for x in batch)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference; equal infinities, as of masked logits, do not differ."""
    first, second = one.double(), other.double()
    return _size(torch.where(first == second, 0.0, first - second))


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().amax()) if tensor.numel() else 0.0


def _largest(some: list[float], others: list[float]) -> list[float]:
    return [max(a, b) for a, b in zip(some, others, strict=True)] if some else others
