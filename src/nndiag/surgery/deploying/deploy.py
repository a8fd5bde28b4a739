"""Goal ``deploy``: take out of a finished network what does nothing, and prove that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nndiag.remedies.plan import Treatment
from nndiag.replay.kinds import Layer
from nndiag.surgery.deploying.cost import Cost, cost
from nndiag.surgery.deploying.deciding import Readers, start_of
from nndiag.surgery.deploying.editing import Smaller, edits_of
from nndiag.surgery.deploying.from_config import Config
from nndiag.surgery.deploying.planning import Did, Plan
from nndiag.surgery.deploying.widths import Widths, widths_of
from nndiag.surgery.deploying.zeroing import placeholder, silent, zeroed
from nndiag.surgery.edits import Edits


@dataclass(frozen=True)
class Done:
    """What was done about one node: taken out (``removed``: it put out nothing; ``folded``: its constant went into the
    biases that follow; ``merged``: its outgoing weights went to its partner), ``zeroed`` where shapes keep it, or
    ``left``; ``why`` says why in the last two.
    """

    layer: str
    index: int
    did: Did
    why: str = ""


@dataclass(frozen=True)
class Deployed:
    """A smaller network.

    ``output_change`` is ``max |f' − f| / max |f|`` over the probe, the largest of the network's outputs. ``widths`` is
    what ``resize`` needs to bring a network as it was to the new sizes; ``before`` and ``after`` are measured on one
    batch. ``config`` is what changes in the configuration that the network is built from, where that was asked for.
    ``layers`` are those of the network as it was, by name, in which nodes are counted.
    """

    module: nn.Module
    edits: Edits
    done: tuple[Done, ...]
    output_change: float
    widths: Widths
    before: Cost
    after: Cost
    config: Config | None
    layers: Mapping[str, Layer]


def deploy(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    treatments: Sequence[Treatment],
    from_config: bool = False,
) -> Deployed:
    """Return a copy of a network without the nodes named, as far as no output on the probe changes.

    A node goes with all that depends on it: its channel in a norm, the inputs of the layers after it, the places that
    it has in concatenations, after flattening, in convolutions of a channel each. It goes where every sum that reads it
    does not notice (it is zero there, or constant and a bias takes it over, or a multiple of its twin); else its
    weights are set to zero where that changes no output. Outputs of the network stay, and no layer becomes empty.

    Args:
        model: it is left as it is; the copy is in the same mode.
        batches: the probe: positional inputs, each ``(batch, ...)``.
        treatments: nodes to take out (``kind`` ``"prune"``) or to merge with their twin (``"merge"``); others are left.
        from_config: whether the network is built from the ``config`` that it has, and the smaller one has to be, too.
            What that cannot say stays, and is zeroed.
    """
    work = copy.deepcopy(model).eval()
    every = [tuple(batch) for batch in batches]
    plan = Plan(work, every, treatments)
    plan.prove()
    config = plan.fit_config() if from_config else None
    smaller, done = _carried_out(plan)
    for key, value in (config or {}).items():
        setattr(smaller.module.config, key, value)
    change = plan.reference.change(smaller.module)
    costs = cost(work, every[0]), cost(smaller.module, every[0])
    modes = dict(model.named_modules())
    for path, module in smaller.module.named_modules():
        module.training = modes[path].training
    return Deployed(
        smaller.module,
        edits_of(model, smaller),
        done,
        change,
        widths_of(model, smaller.module),
        *costs,
        config,
        plan.layers,
    )


def _carried_out(plan: Plan) -> tuple[Smaller, tuple[Done, ...]]:
    """Zero what cannot go, and take out what can."""
    done = {node: Done(*node, "left", why) for node, why in plan.left.items()}
    stay: dict[str, list[int]] = {}
    for node in plan.roots:
        if plan.goes(node):
            done[node] = Done(*node, plan.kind(node))
        else:
            stay.setdefault(node[0], []).append(node[1])
    changed: dict[str, Tensor] = {}
    now = copy.deepcopy(plan.model)
    for name, nodes in stay.items():
        already = silent(now, plan.layers[name], nodes)
        some = [i for i in nodes if i not in already and not plan.is_alive((name, i))]
        values, zero = zeroed(now, plan.reference, plan.layers[name], some)
        changed |= values | _places_kept(plan, now, name, [i for i in zero if plan.is_last((name, i))])
        for index in nodes:
            did: Did = "zeroed" if index in zero else "left"
            why = plan.why((name, index)) + ("; its weights are zero already" if index in already else "")
            done[name, index] = Done(name, index, did, why)
    return plan.smaller(changed), tuple(done[node] for node in sorted(done))


def _places_kept(plan: Plan, model: nn.Module, layer: str, nodes: Sequence[int]) -> dict[str, Tensor]:
    """Let the last nodes of a layer be constants that nothing reads, and no dead units; return what that changes."""
    found: dict[str, Tensor] = {}
    for index in nodes:
        readers = Readers.of(plan.traced, plan.roots[layer, index])
        reading = [
            (*consumer.parameter, torch.from_numpy(places) + start_of(plan.traced, consumer))
            for some in readers.by_root.values()
            for _, consumer, places in some
            if consumer.parameter is not None
        ]
        found |= placeholder(model, plan.reference, plan.layers[layer], index, reading)
    return found
