"""Whether the next step undoes this one: the update map along the step that it would take, all nodes moving together.

Linearised maps miss the cycles of networks with kinks, where the gradient jumps. Here two steps are looked at instead:
``u = −α_e P⁻¹ ∇L(θ)`` and ``u' = −α_e P⁻¹ ∇L(θ + u)``, with ``α_e`` two over the optimiser's stability threshold, so
that ``u' = −u`` is what an eigenvalue at the threshold gives, whatever the momentum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call

from nndiag.measures.plan import Update
from nndiag.measures.replaying import Replay
from nndiag.measures.weights import numbers
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures
from nndiag.replay.passes import main_output

Tensors = Mapping[str, Tensor]


def with_returns(
    replay: Replay, layers: Sequence[LayerMeasures], update: Update | None
) -> tuple[LayerMeasures, ...]:
    """Add ``step_return = ⟨u'_i, u_i⟩/‖u_i‖²`` and ``step_residual = ‖u'_i + u_i‖/‖u_i‖`` per node.

    The first is the update map's Rayleigh quotient along the node's own step, −1 where the next step undoes it; the
    second is zero where it undoes it wholly. NaN where a node does not move. Nothing below the curvature level, without
    a learning rate, or without targets. One forward and backward pass.
    """
    if update is None or replay.plan.level < Level.CURVATURE or not replay.parameter_gradients:
        return tuple(layers)
    parameters = {name: p.detach() for name, p in replay.model.named_parameters()}
    first = _step(update, parameters, replay.parameter_gradients, len(replay.probe))
    if not first:
        return tuple(layers)
    moved = {name: p + first[name] if name in first else p for name, p in parameters.items()}
    second = _step(update, moved, _gradients(replay, moved, list(first)), len(replay.probe))
    return tuple(
        _with_return(replay, record, _aliased(replay, first), _aliased(replay, second)) for record in layers
    )


def _step(update: Update, at: Tensors, sums: Tensors, samples: int) -> dict[str, Tensor]:
    """Return ``−α_e P⁻¹ (∇L + wθ)`` by parameter, ``α_e`` two over the largest stable eigenvalue."""
    steps = {}
    for name, total in sums.items():
        facts = update.rule(name)
        threshold = None if facts is None else facts.stability_threshold
        if facts is None or threshold is None:
            continue
        gradient = total.double() / samples + facts.coupled_decay * at[name]
        if facts.is_adam:
            if name not in update.second_moments:
                continue
            gradient = gradient / update.divisor(name).to(gradient.device)
        steps[name] = (-2 / threshold * (gradient + facts.added_decay * at[name])).to(at[name])
    return steps


def _gradients(replay: Replay, at: Tensors, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the gradient of the summed loss at other parameters."""
    leaves = {name: at[name].clone().requires_grad_(True) for name in names}
    held = {**at, **leaves}
    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    assert replay.probe.loss is not None
    for batch in replay.probe.batches():
        for part in batch.split(replay.part_size):
            output = main_output(functional_call(replay.model, held, part.inputs))
            assert part.targets is not None
            targets = replay.probe.loss.prepare(output.detach(), part.targets)
            loss = replay.probe.loss.per_sample(output, targets).sum()
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient.to_dense() if gradient.is_sparse else gradient
    return sums


def _aliased(replay: Replay, steps: Tensors) -> dict[str, Tensor]:
    """Return the steps by every name that a parameter has."""
    first = {id(p): name for name, p in replay.model.named_parameters()}
    every = replay.model.named_parameters(remove_duplicate=False)
    return {name: steps[first[id(p)]] for name, p in every if first[id(p)] in steps}


def _with_return(replay: Replay, record: LayerMeasures, first: Tensors, second: Tensors) -> LayerMeasures:
    layer = next(one for one in replay.layers if one.name == record.name)
    if not set(layer.names) <= first.keys() or record.name in replay.left_out:
        return record
    u, v = layer.rows(first).double(), layer.rows(second).double()
    size = u.square().sum(dim=1)
    found = {
        "step_return": (u * v).sum(dim=1) / size,
        "step_residual": torch.linalg.vector_norm(u + v, dim=1) / size.sqrt(),
    }
    return replace(record, per_node={**record.per_node, **{k: numbers(x) for k, x in found.items()}})
