"""Where tensors come from: which vary with the sample at all, which have rows that the data pick, and which calls of
layers lie behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nndiag.replay.by_tensor import ByTensor
from nndiag.replay.linearity import tensors_in
from nndiag.replay.units import AFFINE, QUOTIENTS

_RANDOM = frozenset(
    "bernoulli normal multinomial poisson exponential uniform log_normal cauchy geometric".split()
)


_PICKING = frozenset(
    "nonzero argwhere masked_select unique unique_consecutive _pack_padded_sequence bincount".split()
)
"""Functions whose results have as many rows as the values of their arguments say."""
_NEW = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor size numel".split()
)
"""Functions that take from a tensor no more than its shape and type."""
_PUTTING_BACK = frozenset(
    "__setitem__ index_put index_add index_copy index_fill scatter scatter_add scatter_reduce masked_scatter where "
    "_pad_packed_sequence embedding_bag".split()
)
"""Functions that put picked rows, or sums of them, back to where every sample has its own."""


class Lineage:
    """Follows tensors from function to function during one forward pass.

    Args:
        constants: identities of the tensors that are the same for every sample: parameters and buffers.
        picks: whether anybody asks which rows the data pick.

    ``followed`` holds the indices of the calls whose output went into another layer: those that are missing
    are the network's outputs.
    """

    def __init__(self, constants: Collection[int], picks: bool = True) -> None:
        self.followed: set[int] = set()
        self._constants, self._picks_too = constants, picks
        self._derived: ByTensor[bool] = ByTensor()
        self._behind: ByTensor[frozenset[int]] = ByTensor()
        self._picked: ByTensor[bool] = ByTensor()
        self._fixed: ByTensor[bool] = ByTensor()

    def constant(self, tensor: Tensor) -> bool:
        """Whether a tensor does not vary with the sample: a parameter, a buffer, a number, or made of these."""
        return (
            id(tensor) in self._constants or tensor in self._derived or (tensor.dim() == 0 and tensor.is_leaf)
        )

    def known(self, tensor: Tensor) -> bool:
        """Whether a function that was seen made a tensor."""
        return tensor in self._behind

    def picked(self, tensor: Tensor) -> bool:
        """Whether the data say how many rows of each sample a tensor has, as with ``x[x[:, 0] > 0]``."""
        return tensor in self._picked

    def fixed(self, tensor: Tensor) -> bool:
        """Whether a tensor does not depend on the data: a constant, or made without them, as by ``arange``."""
        return id(tensor) in self._constants or tensor in self._fixed

    def see(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object, call: int | None
    ) -> None:
        """Take note of one call of a torch function; ``call`` is the index of the layer's call that it is."""
        every = tensors_in(args[:1] if name == "__setitem__" else result)
        given = tensors_in((args, kwargs))
        if self._picks_too:
            self._see_picks(name, args, kwargs, given, every)
        made = [t for t in every if t.is_floating_point()]
        if not made:
            return
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
                self._derived.drop(tensor)

    def _see_picks(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Sequence[Tensor],
        made: Sequence[Tensor],
    ) -> None:
        """Take note of what does not depend on the data, and of rows that they pick."""
        drawn = name in _RANDOM or "rand" in name
        fixed = not drawn and (name in _NEW or all(map(self.fixed, given)))
        picked = not fixed and (self._picks(name, args, kwargs) or self._passes_on(name, given))
        for tensor in made:
            for known, holds in ((self._fixed, fixed), (self._picked, picked)):
                if holds:
                    known[tensor] = True
                else:
                    known.drop(tensor)

    def _picks(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call of a function gives as many rows as the data say."""
        if name == "__getitem__":
            masks = (index for index in tensors_in(args[1:]) if index.dtype in (torch.bool, torch.uint8))
            return not all(map(self.fixed, masks))
        if name == "repeat_interleave":
            return len(tensors_in((args, kwargs))) > 1
        return name in _PICKING or (name == "where" and len(args) + len(kwargs) == 1)

    def _passes_on(self, name: str, given: Iterable[Tensor]) -> bool:
        if not self._picked or name in _PUTTING_BACK:
            return False
        return any(tensor in self._picked for tensor in given)

    def _united(self, given: Iterable[Tensor]) -> frozenset[int]:
        none: frozenset[int] = frozenset()
        return none.union(*(self._behind.get(tensor, none) for tensor in given))

    def _has_weights(self, name: str, given: Iterable[Tensor]) -> bool:
        """Whether a function mixes units with weights that are no layer's here (an LSTM, an attention)."""
        if name in AFFINE or name in QUOTIENTS:
            return False
        return any(id(t) in self._constants and t.dim() >= 2 and t.is_floating_point() for t in given)
