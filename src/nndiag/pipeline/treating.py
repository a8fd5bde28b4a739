"""All treatments of a network that trains on, carried out on a copy of it: what they do together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from nndiag.errors import NndiagError
from nndiag.measures.moving import Move
from nndiag.probe.probe import Probe
from nndiag.records.finite import finite
from nndiag.records.report import Diagnosis, Number
from nndiag.remedies.plan import ADVICE, plan
from nndiag.surgery.proof import output_change
from nndiag.surgery.training.evidence import look_closely
from nndiag.surgery.training.treating import treat
from nndiag.surgery.training.trial import MAX_LOSS_INCREASE, Limit
from nndiag.surgery.training.turning import ANGLES, turn
from nndiag.surgery.training.ward import Ward
from nndiag.surgery.training.warming import warm_nodes

Numbers = dict[str, Number]


@dataclass(frozen=True)
class TreatedTogether:
    """What treatments did: ``nodes`` by place, of those that were carried out; ``together`` of the whole network,
    ``None`` where nothing was.
    """

    nodes: Mapping[tuple[str, int], Numbers] = field(default_factory=dict)
    together: Numbers | None = None


def try_treatments(found: Diagnosis, model: nn.Module, probe: Probe, seed: int) -> TreatedTogether:
    """Carry out on a copy what a diagnosis calls for, once; what only the optimiser can do is left out.

    Args:
        found: what was said of the network, for training on.
        model: left as it is.
        probe: what treatments are proved on.
        seed: of random numbers.
    """
    wanted = [one for one in plan(found, "train") if one.kind not in ADVICE]
    if not wanted:
        return TreatedTogether()
    try:
        ward = Ward(copy.deepcopy(model), probe, seed)
        before = ward.replay()
        done = treat(ward, wanted, Limit(before, MAX_LOSS_INCREASE)).done
        after = ward.replay(gradients=True)
        evidence = look_closely(ward, {one.treatment.layer for one in done}, after.gradients)
    except NndiagError:  # what cannot be carried out is not verified
        return TreatedTogether()
    nodes: dict[tuple[str, int], Numbers] = {}
    for one in done:
        layer, index = one.treatment.layer, one.treatment.index
        if index is not None:
            nodes[layer, index] = {
                "gradient_after": evidence.gradient(ward.layers[layer], index),
                "outgoing_gradient_after": evidence.outgoing(ward, layer, index),
                "active_after": evidence.firing(layer, index),
            }
    if not done:
        return TreatedTogether()
    losses: Numbers = {"loss_before": finite(before.loss), "loss_after": finite(after.loss)}
    together: Numbers = {
        "actions": len(done),
        **(losses if before.loss is not None else {}),
        "output_change": output_change(before, after),
    }
    return TreatedTogether(nodes, together)


def moves_alone(found: Diagnosis, model: nn.Module, probe: Probe, seed: int) -> tuple[Move, ...]:
    """Return what raising its bias, or turning it, changes in each node: each as if nothing else were treated.

    Args:
        found: what was said of the network, for training on.
        model: left as it is.
        probe: what biases are raised for, and whose gradient weights are turned by.
        seed: of random numbers.
    """
    wanted = [t for t in plan(found, "train") if t.kind in ("bias_warmup", "angular_noise")]
    groups: dict[tuple[str, str], list[int]] = {}
    for one in wanted:
        if one.index is not None:
            groups.setdefault((one.layer, one.kind), []).append(one.index)
    if not groups:
        return ()
    moves: list[Move] = []
    try:
        ward = Ward(copy.deepcopy(model), probe, seed)
        start = ward.state()
        for (layer, kind), nodes in groups.items():
            if layer not in ward.layers:
                continue
            if kind == "bias_warmup":
                warm_nodes(ward, layer, nodes)
            else:
                turn(ward, layer, nodes, ANGLES[0])
            moves += (Move(layer, node, by) for node, by in _differences(ward, layer, start, nodes))
            ward.put_back(start, {})
    except NndiagError:  # what cannot be carried out is not verified
        return ()
    return tuple(moves)


def _differences(
    ward: Ward, name: str, start: Mapping[str, Tensor], nodes: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Yield by how much the rows of some nodes have changed, of those that have."""
    layer, now = ward.layers[name], ward.tensors()
    change = layer.rows(now) - layer.rows(start)
    yield from ((node, change[node]) for node in nodes if bool(change[node].any()))
