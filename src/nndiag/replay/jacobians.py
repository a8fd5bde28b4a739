"""Jacobians of single samples for parameters that no kind knows: raw ones, ties through a transpose.

``J[n, s] = ∂⟨f(x_n), s_n⟩/∂θ``, counting every use of ``θ``, by running samples one by one: vectorised over samples and
seeds where the model allows it, in a loop where it does not. Samples must not see each other, which is checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nndiag.config.callables import reason
from nndiag.replay.kinds import Layer
from nndiag.replay.passes import main_output
from nndiag.replay.state import same_attributes

CHUNK_BYTES = 256 * 2**20
"""Jacobians of all layers and seeds held at a time."""
MIXED = "samples of a batch influence each other there"
AGREEMENT = 0.4
"""Outputs of a sample alone may differ from those in its batch by this power of the rounding, as a share of the
largest: 5e-7 in double, 2e-3 in single precision."""

Rows = dict[str, Tensor]
"""Jacobians by layer, ``(seeds, samples, nodes, size)``."""


class SamplesMixedError(Exception):
    """A sample alone gives another output than in its batch, or none; the message says so."""


def dependence(model: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> str | None:
    """Say why samples cannot be run one by one; ``None`` where each alone gives what it gives in its batch."""
    alone = []
    for n in range(len(output)):
        try:
            alone.append(main_output(model(*(x[n : n + 1] for x in inputs))).detach())
        except Exception as error:  # the user's code may raise anything
            return _fails(error)
    return None if _agree(torch.cat(alone), output) else MIXED


def _fails(error: Exception) -> str:
    return f"the model does not run on a sample alone: {reason(error)}"


def _agree(alone: Tensor, together: Tensor) -> bool:
    scale = float(together.detach().abs().max()) + 1e-12
    accepted = float(torch.finfo(together.dtype).eps ** AGREEMENT)
    return float((alone.detach() - together.detach()).abs().max()) <= accepted * scale


def sample_jacobians(
    model: nn.Module, layers: Sequence[Layer], inputs: Sequence[Tensor], output: Tensor, seeds: Tensor
) -> Iterator[tuple[slice, Rows]]:
    """Yield the Jacobians of a batch, some samples at a time.

    Args:
        model: in eval mode, parameters differentiable.
        layers: those wanted.
        inputs: of the model, each ``(batch, ...)``.
        output: the model's output for the whole batch, for comparison.
        seeds: ``(seeds, batch, ...)``, each shaped like the output.

    Raises:
        SamplesMixedError: samples are not independent of each other.
    """
    names = sorted({name for layer in layers for name in layer.names})
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name: named[name].detach() for name in names}
    entries = sum(p.numel() for p in parameters.values())
    step = max(1, CHUNK_BYTES // max(1, entries * len(seeds) * output.element_size()))
    for start in range(0, len(output), step):
        part = slice(start, min(start + step, len(output)))
        some = [x[part] for x in inputs]
        try:
            # nothing of the tensors inside may be left behind; what is slow there is not the user's concern
            with same_attributes(model), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found, alone = _vectorised(model, parameters, some, seeds[:, part])
        except Exception:  # whatever a model does that cannot be vectorised; one by one says
            found, alone = _one_by_one(model, {n: named[n] for n in names}, some, seeds[:, part])
        if not _agree(alone, output[part]):
            raise SamplesMixedError(MIXED)
        yield part, {layer.name: layer.rows(found, lead=2).detach() for layer in layers}


def _vectorised(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor], seeds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    def one(sample: Sequence[Tensor], own: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        def run(values: Mapping[str, Tensor]) -> Tensor:
            called = torch.func.functional_call(model, dict(values), tuple(x[None] for x in sample))
            return main_output(called)[0]

        value, pull = torch.func.vjp(run, dict(parameters))[:2]
        with torch.no_grad():  # or every gradient would keep the graph that made it
            # one by one: a vmap inside another is wrong for some functions, such as prelu
            grads = [pull(seed)[0] for seed in own]
        return {name: torch.stack([grad[name] for grad in grads]) for name in parameters}, value

    mapped = torch.func.vmap(one, in_dims=(0, 1), out_dims=(1, 0), randomness="same")
    found: tuple[dict[str, Tensor], Tensor] = mapped(tuple(inputs), seeds)
    return found


def _one_by_one(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor], seeds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    outputs = []
    for n in range(len(inputs[0])):
        try:
            output = main_output(model(*(x[n : n + 1] for x in inputs)))
        except Exception as error:  # the user's code may raise anything
            raise SamplesMixedError(_fails(error)) from error
        outputs.append(output.detach())
        of_sample: dict[str, list[Tensor]] = {name: [] for name in parameters}
        for seed in seeds[:, n : n + 1]:
            grads: Sequence[Tensor | None] = [None] * len(parameters)
            if output.requires_grad:
                grads = torch.autograd.grad(
                    output, list(parameters.values()), seed, retain_graph=True, allow_unused=True
                )
            for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
                of_sample[name].append(torch.zeros_like(parameter) if grad is None else grad.detach())
        for name, parts in of_sample.items():
            rows[name].append(torch.stack([p.to_dense() if p.is_sparse else p for p in parts]))
    return {name: torch.stack(parts, dim=1) for name, parts in rows.items()}, torch.cat(outputs)
