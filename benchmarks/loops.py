"""Products of single nodes' blocks with the tools of others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.problems import Case

Product = Callable[[Tensor], Tensor]
"""Multiplies the block of a node by a vector, ``(size,) → (size,)``."""


class OpenLayer(Protocol):
    """A layer with what a tool prepares for it once."""

    def product(self, node: int) -> Product:
        """Return the product of a node's block."""


Loop = Callable[[Case, str], OpenLayer]
"""Opens a layer of a case, by the layer's name."""


@dataclass(frozen=True)
class NodeBlock:
    """One node's block, as a solver takes it: a stack of a single matrix."""

    multiply: Product
    size: int

    nodes = 1
    semidefinite = True  # Gauss-Newton, or the Hessian of a piecewise linear network

    @property
    def rank_bound(self) -> int:
        """Nothing is known of it."""
        return self.size

    def product(self, vectors: Tensor) -> Tensor:
        """Multiply the one vector of ``(1, size)``."""
        return self.multiply(vectors[0])[None]

    def restricted(self, index: Tensor) -> None:
        """There is nothing to leave out."""

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the block, a product a column."""
        unit = torch.eye(self.size)
        return torch.stack([self.multiply(column) for column in unit], dim=1)[None]


class CurvlinopsLayer:
    """The Gauss-Newton operator of one layer's parameters."""

    def __init__(self, case: Case, name: str) -> None:
        from curvlinops import GGNLinearOperator

        self._own = list(case.model.get_submodule(name).parameters())
        batches = [(batch.inputs[0], batch.targets) for batch in case.probe.batches()]
        self._operator = GGNLinearOperator(
            case.model, nn.CrossEntropyLoss(), self._own, batches,
            check_deterministic=False, num_data=len(case.probe),
        )  # fmt: skip

    def product(self, node: int) -> Product:
        """Cut the operator to the rows and columns of a node."""
        from curvlinops import SubmatrixLinearOperator

        places = node_places(self._own, node)
        block = SubmatrixLinearOperator(self._operator, places, places)
        return lambda vector: block @ vector


class PyHessianLayer:
    """PyHessian's gradients of one layer's parameters, with their graph."""

    def __init__(self, case: Case, name: str) -> None:
        from pyhessian import hessian

        own = list(case.model.get_submodule(name).parameters())
        for parameter in case.model.parameters():
            parameter.requires_grad_(any(parameter is one for one in own))
        assert case.probe.targets is not None
        data = (case.probe.inputs[0], case.probe.targets)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
                self._tool = hessian(
                    case.model, nn.CrossEntropyLoss(), data=data, cuda=case.probe.inputs[0].is_cuda
                )
        finally:
            for parameter in case.model.parameters():
                parameter.requires_grad_(True)
                parameter.grad = None  # a cycle with its graph

    def product(self, node: int) -> Product:
        """Multiply by vectors that are zero outside a node."""
        from pyhessian.utils import hessian_vector_product

        params, gradients = self._tool.params, self._tool.gradsH

        def multiply(vector: Tensor) -> Tensor:
            parts = [torch.zeros_like(parameter) for parameter in params]
            start = 0
            for part in parts:
                count = part[node].numel()
                part[node] = vector[start : start + count].view_as(part[node])
                start += count
            images = hessian_vector_product(gradients, params, parts)
            return torch.cat([image[node].reshape(-1) for image in images])

        return multiply


def node_places(parameters: list[nn.Parameter], node: int) -> list[int]:
    """Return where a node's entries lie in a layer's parameters laid end to end."""
    places: list[int] = []
    start = 0
    for parameter in parameters:
        count = parameter[node].numel()
        places += range(start + node * count, start + (node + 1) * count)
        start += parameter.numel()
    return places


LOOPS: dict[str, Loop] = {"curvlinops": CurvlinopsLayer, "PyHessian": PyHessianLayer}
