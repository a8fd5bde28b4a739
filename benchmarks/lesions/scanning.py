"""What the rules say of a network: the roots among the findings of its nodes, above notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.lesions.planting import Node
from nndiag.measures import Plan, Update, measure
from nndiag.measures.record import all_finite, weights_only
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts
from nndiag.replay.layers import find_layers
from nndiag.rules.diagnose import Selection, judge, judge_model

Roots = Mapping[Node, frozenset[str]]


@dataclass(frozen=True)
class Said:
    """By node its findings above notes that follow from no other, all of them above notes, and all nodes; ``collapsed``
    that the network answers the same on all samples.
    """

    roots: Roots
    every: Roots
    nodes: frozenset[Node]
    collapsed: bool = False


def said_of(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    facts: OptimizerFacts | None = None,
    loss: str = "cross_entropy",
) -> Said:
    """Scan a network as the command line does: by its weights alone where those are not finite."""
    parameters = dict(model.named_parameters())
    if all_finite(parameters):
        x, y = data
        update = None if facts is None else Update(facts, {})
        plan = Plan(Level.CURVATURE, curvature="ggn")
        measured = measure(model, Probe((x,), y, named_loss(loss)), plan, update)
    else:
        measured = weights_only(find_layers(model), parameters)
    roots: dict[Node, frozenset[str]] = {}
    every: dict[Node, frozenset[str]] = {}
    nodes = set()
    for one in judge(measured, Selection()):
        nodes |= {(one.measures.name, i) for i in range(one.measures.nodes)}
        for i, findings in one.by_node.items():
            grave = [finding for finding in findings if finding.severity != "info"]
            if grave:
                node = (one.measures.name, i)
                every[node] = frozenset(finding.code for finding in grave)
                roots[node] = frozenset(finding.code for finding in grave if finding.cause is None)
    of_model = {finding.code for finding in judge_model(measured, Selection())}
    return Said(roots, every, frozenset(nodes), "ND501" in of_model)
