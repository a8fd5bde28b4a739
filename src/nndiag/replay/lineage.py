"""Where tensors come from: which vary with the sample at all, and which calls of layers lie behind them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nndiag.replay.linearity import tensors_in
from nndiag.replay.units import AFFINE, QUOTIENTS

_RANDOM = frozenset(
    "bernoulli normal multinomial poisson exponential uniform log_normal cauchy geometric".split()
)


class Lineage:
    """Follows tensors from function to function during one forward pass.

    Args:
        constants: identities of the tensors that are the same for every sample: parameters and buffers.

    ``followed`` holds the indices of the calls whose output went into another layer: those that are missing
    are the network's outputs.
    """

    def __init__(self, constants: Collection[int]) -> None:
        self.followed: set[int] = set()
        self._constants = constants
        self._derived = WeakTensorKeyDictionary()
        self._behind = WeakTensorKeyDictionary()

    def constant(self, tensor: Tensor) -> bool:
        """Whether a tensor does not vary with the sample: a parameter, a buffer, a number, or made of these."""
        return (
            id(tensor) in self._constants or tensor in self._derived or (tensor.dim() == 0 and tensor.is_leaf)
        )

    def known(self, tensor: Tensor) -> bool:
        """Whether a function that was seen made a tensor."""
        return tensor in self._behind

    def see(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object, call: int | None
    ) -> None:
        """Take note of one call of a torch function; ``call`` is the index of the layer's call that it is."""
        made = [t for t in tensors_in(args[:1] if name == "__setitem__" else result) if t.is_floating_point()]
        if not made:
            return
        given = list(tensors_in((args, kwargs)))
        behind = self._united(given) - self.followed
        if call is not None or self._has_weights(name, given):
            self.followed |= behind
            behind = frozenset() if call is None else frozenset([call])
        is_constant = bool(given) and name not in _RANDOM and "rand" not in name
        is_constant = is_constant and call is None and all(self.constant(t) for t in given)
        for tensor in made:
            self._behind[tensor] = behind
            if is_constant:
                self._derived[tensor] = True
            else:
                self._derived.pop(tensor, None)  # type: ignore[no-untyped-call]

    def _united(self, given: Iterable[Tensor]) -> frozenset[int]:
        return frozenset().union(*(self._behind[tensor] for tensor in given if tensor in self._behind))

    def _has_weights(self, name: str, given: Iterable[Tensor]) -> bool:
        """Whether a function mixes units with weights that are no layer's here (an LSTM, an attention)."""
        if name in AFFINE or name in QUOTIENTS:
            return False
        return any(id(t) in self._constants and t.dim() >= 2 and t.is_floating_point() for t in given)
