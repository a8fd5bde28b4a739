"""Proving that a network is piecewise linear, from the functions it called.

Where it is, the Gauss-Newton block of a node is its Hessian for any loss, almost everywhere. The proof is
one-sided: a function that is not known here counts as smooth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from nndiag.replay.nonlinearity import recognise
from nndiag.replay.units import KEEP_SHAPE, POOLS, QUOTIENTS, RESHAPES

_NORMALISED_BY_DATA = frozenset({"layer_norm", "group_norm", "instance_norm", "rms_norm"})
_LINEAR = (
    (KEEP_SHAPE - _NORMALISED_BY_DATA - {"batch_norm", "native_batch_norm"})
    | (POOLS - {"lp_pool1d", "lp_pool2d"})
    | RESHAPES
    | frozenset(
        "permute transpose swapaxes swapdims movedim moveaxis t mT cat concat concatenate stack hstack vstack chunk "
        "split tensor_split unbind __getitem__ select narrow index_select gather expand expand_as broadcast_to "
        "repeat tile mean sum neg negative __neg__ add sub subtract __add__ __radd__ __iadd__ __sub__ __rsub__ "
        "__isub__ rsub pad amax amin max min maximum minimum flip roll detach pixel_shuffle interpolate upsample "
        "fold unfold __get__ zeros_like ones_like cumsum diff masked_fill where".split()
    )
)
_BILINEAR = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul __matmul__ __rmatmul__ "
    "mm bmm mv dot addmm baddbmm einsum mul __mul__ __rmul__ __imul__ multiply bilinear".split()
)
_PLAIN = frozenset({int, float, bool, str, type(None), slice, torch.dtype, torch.device, torch.Size})
_SMOOTH_NODES = (
    "Gelu Silu Mish Tanh Sigmoid Softplus Elu Exp Log Erf Pow Sqrt Rsqrt Reciprocal Softmax NativeLayerNorm "
    "NativeGroupNorm"
).split()
_SMOOTH_GRAPH = frozenset(f"{name}Backward{i}" for name in _SMOOTH_NODES for i in range(3))
"""Nodes of the autograd graph that no piecewise-linear network has, for what calls no torch function that can be
seen, such as a scripted activation."""


class LinearityProof:
    """Collects the functions that a forward pass called with values that depend on parameters.

    ``smooth`` holds those that are not piecewise linear; ``heads`` the results of ``log_softmax`` with their axis,
    which is harmless where it is the network's output and the loss is a cross-entropy over that axis: there
    ``Σ_c (p_c − y_c) = 0`` removes its curvature.
    """

    def __init__(self) -> None:
        self.smooth: set[str] = set()
        self.heads: list[tuple[Tensor, int]] = []

    def see(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object) -> None:
        """Take note of one call of a torch function."""
        varying = [t for t in tensors_in((args, kwargs)) if t.requires_grad and not t.is_leaf]
        if not varying or not any(t.is_floating_point() for t in tensors_in(result)):
            return
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if name == "log_softmax" and isinstance(result, Tensor) and isinstance(axis, int):
            self.heads.append((result, axis % result.dim()))
        elif not _piecewise_linear(name, args, kwargs, varying):
            self.smooth.add(name)

    def holds(self, output: Tensor, class_axis: int | None) -> bool:
        """Whether everything up to ``output`` was piecewise linear in the parameters of any one node.

        Args:
            output: the network's.
            class_axis: the axis over which a cross-entropy follows; ``None`` for another loss.
        """
        harmless = None if class_axis is None else class_axis % output.dim()
        heads = [head for head, axis in self.heads if head is not output or axis != harmless]
        return not self.smooth and not heads and _graph_agrees(output)


def linear_in(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether a function is linear in one of its arguments, a parameter, given all others."""
    if name in QUOTIENTS:
        return bool(args) and args[0] is parameter
    return name in _LINEAR or name in _BILINEAR or name in ("prelu", "embedding", "embedding_bag")


def _graph_agrees(output: Tensor) -> bool:
    """Whether the autograd graph holds no user-defined function and none that is known to be smooth."""
    return not any(
        issubclass(type(node), torch.autograd.function.BackwardCFunction) or node.name() in _SMOOTH_GRAPH
        for node in _graph(output)
    )


def leaves(output: Tensor) -> Iterator[Tensor]:
    """Yield the tensors at the ends of an autograd graph, parameters among them."""
    for node in _graph(output):
        if node.name().endswith("AccumulateGrad"):
            yield node.variable  # type: ignore[attr-defined]


def _graph(output: Tensor) -> Iterator[Node]:
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


def _piecewise_linear(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], varying: list[Tensor]
) -> bool:
    if name == "batch_norm":
        training = args[5] if len(args) > 5 else kwargs.get("training", False)
        return not training and len(varying) <= 1
    if name in _BILINEAR or name == "prelu":
        return len(varying) <= 1
    if name in QUOTIENTS:
        return len(varying) <= 1 and len(args) > 0 and args[0] is varying[0]
    if name in _LINEAR:
        return True
    activation = recognise(name, args, kwargs)
    return activation is not None and activation.piecewise_linear


def tensors_in(value: object) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and mappings."""
    found: list[Tensor] = []
    _gather((value,), found)
    return found


def _gather(values: Iterable[object], found: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in _PLAIN:  # most of what is no tensor, and much faster than to ask what it is
            continue
        elif isinstance(value, tuple | list):
            _gather(value, found)
        elif isinstance(value, Mapping):
            _gather(value.values(), found)
