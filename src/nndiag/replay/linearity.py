"""Proving that a network is piecewise linear, from the functions it called.

Where it is, the Gauss-Newton block of a node is its Hessian for any loss, almost everywhere. The proof is
one-sided:
a function that is not known here counts as smooth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from nndiag.replay.nonlinearity import recognise
from nndiag.replay.units import KEEP_SHAPE, POOLS, RESHAPES

_NORMALISED_BY_DATA = frozenset({"layer_norm", "group_norm", "instance_norm", "rms_norm"})
_LINEAR = (
    (KEEP_SHAPE - _NORMALISED_BY_DATA - {"batch_norm"})
    | (POOLS - {"lp_pool1d", "lp_pool2d"})
    | RESHAPES
    | frozenset(
        "permute transpose swapaxes swapdims movedim moveaxis t cat concat concatenate stack hstack vstack chunk "
        "split tensor_split unbind __getitem__ select narrow index_select gather expand expand_as broadcast_to "
        "repeat tile mean sum neg __neg__ add sub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ rsub pad "
        "amax amin max min maximum minimum flip roll detach pixel_shuffle interpolate upsample fold unfold __get__ "
        "zeros_like ones_like cumsum diff masked_fill".split()
    )
)
_BILINEAR = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul __matmul__ __rmatmul__ "
    "mm bmm mv dot addmm baddbmm einsum mul __mul__ __rmul__ __imul__ multiply bilinear".split()
)
_QUOTIENT = frozenset("div true_divide __truediv__ __itruediv__ divide __div__".split())


class LinearityProof:
    """Collects the functions that a forward pass called with values that depend on parameters.

    ``smooth`` holds those that are not piecewise linear; ``heads`` the results of ``log_softmax``, which
    is harmless where it
    is the network's output and the loss is a cross-entropy: there ``Σ_c (p_c − y_c) = 0`` removes its
    curvature.
    """

    def __init__(self) -> None:
        self.smooth: set[str] = set()
        self.heads: list[Tensor] = []

    def see(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object) -> None:
        """Take note of one call of a torch function."""
        varying = [t for t in tensors_in((args, kwargs)) if t.requires_grad and not t.is_leaf]
        if not varying or not any(t.is_floating_point() for t in tensors_in(result)):
            return
        if name == "log_softmax" and isinstance(result, Tensor):
            self.heads.append(result)
        elif not _piecewise_linear(name, args, kwargs, len(varying)):
            self.smooth.add(name)

    def holds(self, output: Tensor, log_softmax_head: bool) -> bool:
        """Whether everything up to ``output`` was piecewise linear in the parameters of any one node."""
        heads = [h for h in self.heads if not (log_softmax_head and h is output)]
        return not self.smooth and not heads


def _piecewise_linear(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], varying: int) -> bool:
    if name == "batch_norm":
        training = args[5] if len(args) > 5 else kwargs.get("training", False)
        return not training
    if name in _BILINEAR:
        return varying <= 1
    if name in _QUOTIENT:
        return varying <= 1 and len(args) > 0 and isinstance(args[0], Tensor) and args[0].requires_grad
    if name in _LINEAR:
        return True
    activation = recognise(name, args, kwargs)
    return activation is not None and activation.piecewise_linear


def tensors_in(value: object) -> Iterable[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
