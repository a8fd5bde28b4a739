"""Products with the exact Hessian of the probe's mean loss, by differentiating twice.

``H V`` for a stack of vectors over some of a model's parameters, batch by batch of the probe. Unlike the blocks of
``blocks`` this needs the second derivative of every operation, and the targets: on a network that is not piecewise
linear the Hessian depends on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from nndiag.config.callables import reason
from nndiag.errors import InputError, ModelError
from nndiag.measures.twice import TwiceDifferentiable
from nndiag.probe.probe import Batch, Probe
from nndiag.replay.passes import main_output

_ONCE_ONLY = "torch::autograd::Error"
"""The node of the graph in place of a derivative that may not be taken."""


class NoSecondDerivativeError(ModelError):
    """The model cannot be differentiated twice: an operation in it has no second derivative."""


class HessianProducts:
    """``H V`` with ``H = ∂²L/∂θ²``, ``L = (1/N) Σ_n ℓ_n`` the mean loss over the probe, θ the parameters named.

    A vector over θ is flat: the parameters one after the other in the order of ``names``, each flattened
    (``named`` takes it apart). Products are exact up to rounding; a user's own
    autograd function is taken at its word. Usable where the parameters require gradients, the model is in the mode in
    which it is to be examined (inside ``replay.state.undisturbed`` both hold), the probe has a loss and targets,
    and every operation has a second derivative: the first product tells.

    Args:
        model: the model.
        probe: samples, targets and loss.
        names: the parameters of θ, by name; all floating ones where ``None``. Several names of one tied parameter
            may be used, one at a time.
        keep_graphs: whether the first-order graphs of all batches are kept from one product to the next, which saves
            a forward and a backward pass each; ``None`` keeps that of a single batch.
        samples: those whose share ``(1/N) Σ_{n in samples} ℓ_n`` is differentiated, all where ``None``; ``N`` stays the
            size of the probe, so that the products of a partition add up.
        apart: whether samples do not see each other, so that those may run through the model without the others.

    Raises:
        InputError: the probe has no loss or no targets.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        names: Sequence[str] | None = None,
        keep_graphs: bool | None = None,
        samples: slice | None = None,
        apart: bool = True,
    ) -> None:
        if probe.loss is None or probe.targets is None:
            why = "the exact Hessian depends on the targets, and it has none"
            raise InputError("probe", why, "give y with the probe, or use --curvature ggn")
        known = dict(model.named_parameters(remove_duplicate=False))
        if names is None:
            names = [name for name, p in model.named_parameters() if p.is_floating_point()]
        self.names = tuple(names)
        self._model, self._probe = model, probe
        self._inputs, self._targets = probe.inputs, probe.targets
        self._counted: Tensor | None = None
        if samples is not None and apart:
            self._inputs, self._targets = tuple(x[samples] for x in probe.inputs), probe.targets[samples]
        elif samples is not None:
            self._counted = torch.zeros(len(probe), dtype=torch.bool, device=probe.targets.device)
            self._counted[samples] = True
        self._parameters = [known[name] for name in self.names]
        self._keep = len(self._targets) <= probe.batch_size if keep_graphs is None else keep_graphs
        self._kept: list[Tensor] | None = None
        self._batched = True

    @property
    def size(self) -> int:
        """``P``, the length of a vector."""
        return sum(p.numel() for p in self._parameters)

    @property
    def like(self) -> Tensor:
        """A tensor of the vectors' dtype and device."""
        return self._parameters[0]

    def product(self, vectors: Tensor) -> Tensor:
        """Return ``H v`` of every row: ``(k, P) → (k, P)``.

        All rows go through one batched second backward pass; where an operation cannot be batched, one by one.

        Raises:
            NoSecondDerivativeError: an operation of the model has no second derivative.
        """
        found = torch.zeros_like(vectors)
        for gradient in self._graphs():
            if gradient.requires_grad:
                found += self._second(gradient, vectors)
        return found

    def product_within(self, places: Tensor, rows: Tensor, at_once: int) -> Tensor:
        """Multiply principal submatrices of ``H``, each by its own vector: ``(k, size) → (k, size)``.

        Args:
            places: the coordinates of each submatrix among the ``P``, ``(k, size)``; −1 for none.
            rows: the vectors in those coordinates.
            at_once: how many go through one batched pass.

        Raises:
            NoSecondDerivativeError: an operation of the model has no second derivative.
        """
        found = torch.zeros_like(rows)
        there = (places >= 0).to(rows)
        for gradient in self._graphs():
            if not gradient.requires_grad:
                continue
            for start in range(0, len(rows), at_once):
                part = slice(start, start + at_once)
                own, mask = places[part].clamp_min(0), there[part]
                vectors = rows.new_zeros(len(own), self.size).scatter_add_(1, own, rows[part] * mask)
                found[part] += self._second(gradient, vectors).gather(1, own) * mask
        return found

    def gradient(self) -> Tensor:
        """Return ``∂L/∂θ``, ``(P,)``."""
        found = torch.zeros(self.size, dtype=self.like.dtype, device=self.like.device)
        for gradient in self._graphs():
            found += gradient.detach()
        return found

    def named(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return vectors ``(..., P)`` as tensors by parameter name, each ``(..., *shape)``."""
        parts = torch.split(vectors, [p.numel() for p in self._parameters], dim=-1)
        return {
            name: part.reshape((*vectors.shape[:-1], *p.shape))
            for name, part, p in zip(self.names, parts, self._parameters, strict=True)
        }

    def _graphs(self) -> Iterator[Tensor]:
        """Yield, batch by batch, ``∂L/∂θ`` of its samples as one vector that can be differentiated again."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for start in range(0, len(self._targets), self._probe.batch_size):
            part = slice(start, start + self._probe.batch_size)
            gradient = self._first(Batch(tuple(x[part] for x in self._inputs), self._targets[part], start))
            if self._keep:
                kept.append(gradient)
            yield gradient
        if self._keep:
            self._kept = kept

    def _first(self, batch: Batch) -> Tensor:
        with second_order(self._model):
            counted = None if self._counted is None else self._counted[batch.start : batch.start + len(batch)]
            value = mean_loss(self._model, self._probe, batch, counted)
            parts: Sequence[Tensor | None] = [None] * len(self._parameters)
            if value.requires_grad:
                parts = first_derivatives(value, self._parameters)
        return self._joined(parts)

    def _second(self, gradient: Tensor, vectors: Tensor) -> Tensor:
        if self._batched and len(vectors) > 1:
            parts = batched_second(gradient, self._parameters, vectors)
            if parts is not None:
                return self._joined(parts, len(vectors))
            self._batched = False  # an operation of this model has no batching rule
        return torch.stack([self._one(gradient, vector) for vector in vectors])

    def _one(self, gradient: Tensor, vector: Tensor) -> Tensor:
        with explained():
            parts = torch.autograd.grad(
                gradient, self._parameters, vector, retain_graph=True, allow_unused=True
            )
        return self._joined(parts)

    def _joined(self, parts: Sequence[Tensor | None], *lead: int) -> Tensor:
        """Return gradients as one vector, or a stack of them, with zeros for parameters that do not matter."""
        return torch.cat(
            [
                p.new_zeros(*lead, p.numel()) if g is None else g.reshape(*lead, -1)
                for p, g in zip(self._parameters, parts, strict=True)
            ],
            dim=-1,
        )


def mean_loss(model: nn.Module, probe: Probe, batch: Batch, counted: Tensor | None = None) -> Tensor:
    """Return the batch's share of the mean loss over the probe, ``(1/N) Σ ℓ_n``, as a scalar.

    Args:
        model: the model.
        probe: with its loss.
        batch: a batch of it, with targets.
        counted: mask of the samples of the batch to sum over, ``(batch,)``; all where ``None``.
    """
    assert probe.loss is not None
    assert batch.targets is not None
    output = main_output(model(*batch.inputs))
    targets = probe.loss.prepare(output.detach(), batch.targets)
    losses = probe.loss.per_sample(output, targets)
    return (losses if counted is None else losses[counted]).sum() / len(probe)


def first_derivatives(
    value: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge]
) -> tuple[Tensor | None, ...]:
    """Return ``∂value/∂input`` in a form that can be differentiated again, ``None`` for one that does not matter.

    Raises:
        NoSecondDerivativeError: it cannot be. A function marked ``once_differentiable`` would else count as constant,
            without any error.
    """
    with explained():
        found = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    seen: set[Node] = set()
    waiting = [part.grad_fn for part in found if part is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == _ONCE_ONLY:
            raise _no_second_derivative("a function in it is marked once_differentiable")
        seen.add(node)
        waiting.extend(before for before, _ in node.next_functions)
    return found


def batched_second(
    first: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge], seeds: Tensor
) -> tuple[Tensor | None, ...] | None:
    """Return ``∂⟨first, seed⟩/∂input`` of a stack of seeds, ``None`` where an operation cannot be batched.

    An input that does not matter has ``None`` in its place.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an operation is slow in a batched pass
        try:
            return torch.autograd.grad(
                first, inputs, seeds, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return None


@contextmanager
def second_order(model: nn.Module) -> Iterator[None]:
    """Choose functions that can be differentiated twice: plain attention, and no fused recurrent layers on CUDA."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(TwiceDifferentiable())
        if recurrent and torch.cuda.is_available():
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def explained() -> Iterator[None]:
    """Say of a failed differentiation in one line that the model has no second derivative."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise _no_second_derivative(reason(error)) from error


def _no_second_derivative(why: str) -> NoSecondDerivativeError:
    sentence = f"the model cannot be differentiated twice: {why}"
    return NoSecondDerivativeError("--curvature hessian", sentence, "use --curvature ggn")
