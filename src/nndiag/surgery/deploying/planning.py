"""Which nodes of a network go, decided on what one look at it showed and proved on the probe."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from nndiag.remedies.plan import Treatment
from nndiag.replay.orientation import layers_in_use
from nndiag.surgery.deploying.agreement import DisagreementError, Reference
from nndiag.surgery.deploying.attributes import parents_of
from nndiag.surgery.deploying.consumers import Pair
from nndiag.surgery.deploying.deciding import (
    BlockedError,
    Key,
    Readers,
    Removal,
    all_of_an_axis,
    companions,
    node_atoms,
    removal,
    writers,
)
from nndiag.surgery.deploying.editing import Smaller, remaining, shrink
from nndiag.surgery.deploying.following import OUTPUT, plain_functions
from nndiag.surgery.deploying.from_config import UNEVEN, Config, heads_by_layer, smaller_config, uneven
from nndiag.surgery.deploying.tracing import Batches, compare_pairs, trace

Did = Literal["removed", "folded", "merged", "zeroed", "left"]
Node = tuple[str, int]
LAST = "it is the last of its layer, which cannot be empty"
ATTENTION = (
    "its head goes only as a whole, and torch.nn.MultiheadAttention has as many rows for all heads as inputs"
)
UNTOUCHED = "nothing about it calls for taking it out"


class Plan:
    """Treatments of one network: which classes of places go, and what each needs."""

    def __init__(self, model: nn.Module, batches: Batches, treatments: Sequence[Treatment]) -> None:
        self.model, self.batches = model, batches
        self.reference = Reference(model, batches)
        with plain_functions():
            few = tuple(x[:3].clone() for x in batches[0])
            self.layers = {layer.name: layer for layer in layers_in_use(model, few)}
        self.traced = trace(model, batches)
        self.writers = writers(self.traced, self.layers.values())
        self.left: dict[Node, str] = {}
        self.roots: dict[Node, tuple[int, ...]] = {}
        self.removals: dict[int, Removal] = {}
        self.blocked: dict[int, str] = {}
        self.varying: set[int] = set()
        self.parents: set[str] = set()
        twins: dict[Node, int] = {}
        for one in treatments:
            if one.index is None:
                continue
            node = (one.layer, one.index)
            self._place(node, one.kind)
            if one.kind == "merge" and one.twin is not None:
                twins[node] = one.twin
        self._decide(twins)

    def _place(self, node: Node, kind: str) -> None:
        """Find the classes of a node, or say why it is left."""
        layer, index = self.layers.get(node[0]), node[1]
        if kind not in ("prune", "merge"):
            self.left[node] = UNTOUCHED
        elif layer is None or not 0 <= index < layer.nodes:
            self.left[node] = "the model has no such node"
        elif layer.weights[0].parameter not in self.traced.used:
            self.left[node] = "the probe never runs it"
        else:
            roots = tuple(int(root) for root in node_atoms(self.traced, layer, index))
            if any(self.traced.atoms.why_fixed(root) == OUTPUT for root in roots):
                self.left[node] = OUTPUT
            else:
                self.roots[node] = roots

    def _decide(self, twins: Mapping[Node, int]) -> None:
        """Say of every class what its removal takes."""
        targets = self._targets(twins)
        wanted = {root for roots in self.roots.values() for root in roots}
        readers = Readers.of(self.traced, wanted | set(targets.values()))
        pairs: dict[int, dict[Key, Pair]] = {}
        for root, target in targets.items():
            try:
                pairs[root] = readers.pairs(root, target)
            except BlockedError as error:
                self.blocked[root] = str(error)
        if pairs:
            compare_pairs(self.model, self.batches, self.traced, _by_key(pairs.values()))
        for root in sorted(wanted):
            try:
                self.removals[root] = removal(readers, root, pairs.get(root, {}))
            except BlockedError as error:
                self.blocked.setdefault(root, str(error))
                self.varying |= {root} if error.varies else set()
        for root, target in targets.items():
            if root in self.removals and self.removals[root].merges and target in self.removals:
                self._block([root], "its partner goes itself")
        self._keep_layers()

    def _targets(self, twins: Mapping[Node, int]) -> dict[int, int]:
        """Return, by the class of a node to merge, that of the node at the end of the chain of those it repeats."""
        found = {}
        for (name, index), twin in twins.items():
            seen = {index}
            while (name, twin) in twins and twin not in seen:
                seen.add(twin)
                twin = twins[name, twin]
            own = self.roots.get((name, index), ())
            if not own or not 0 <= twin < self.layers[name].nodes:
                continue
            theirs = node_atoms(self.traced, self.layers[name], twin)
            if len(own) == len(theirs) == 1 and own[0] != int(theirs[0]):
                found[own[0]] = int(theirs[0])
        return found

    def _block(self, roots: Iterable[int], why: str) -> None:
        for root in roots:
            self.removals.pop(root, None)
            self.blocked.setdefault(root, why)

    def goes(self, node: Node) -> bool:
        """Whether all of a node is taken out."""
        roots = self.roots.get(node, ())
        return bool(roots) and all(root in self.removals for root in roots)

    def _whole_nodes(self) -> None:
        """Keep the other places of a node of which one stays."""
        while True:
            needed = {root for node, roots in self.roots.items() if self.goes(node) for root in roots}
            if needed >= self.removals.keys():
                return
            self.removals = {root: one for root, one in self.removals.items() if root in needed}

    def _keep_layers(self) -> None:
        """Leave one place of every axis that would be empty."""
        self._whole_nodes()
        while kept := all_of_an_axis(self.traced, self.removals):
            self._block(kept, LAST)
            self._whole_nodes()

    def prove(self) -> None:
        """Keep the removals that are seen to change nothing: all together, or else layer by layer."""
        every = list(self.removals.values())
        if not every:
            return
        names = set(remaining(self.traced, self.removals))
        for parents in (set[str](), parents_of(names)):
            if self._fails(every, parents) is None:
                self.parents = parents
                return
        accepted: list[Removal] = []
        for group in self._groups():
            accepted += self._proved(accepted, group)
        self._whole_nodes()

    def fit_config(self) -> Config:
        """Leave what the network's configuration cannot say, and return what changes in it."""
        self._even()
        heads = heads_by_layer(self.model, self.traced) | {
            int(root) for factor in self.traced.splits for root in self.traced.atoms.roots(factor)
        }
        for unsaid in (set[int](), heads, set(self.removals)):
            self._block(unsaid & self.removals.keys(), "the configuration cannot say that it is gone")
            self._whole_nodes()
            self._even()
            smaller = self.smaller({})
            found = smaller_config(self.model, smaller.module, self.traced, smaller.kept)
            if found is not None:
                return found
        return {}

    def _even(self) -> None:
        """Keep layers of a kind equally wide."""
        while kept := uneven(self.model, self.traced, remaining(self.traced, self.removals)):
            self._block(kept & self.removals.keys(), UNEVEN)
            self._whole_nodes()

    def smaller(self, changed: Mapping[str, Tensor]) -> Smaller:
        """Return the network without what goes, with values that differ otherwise in the old shapes."""
        return shrink(self.model, self.traced, list(self.removals.values()), changed, self.parents)

    def _proved(self, accepted: Sequence[Removal], group: Sequence[Removal]) -> Sequence[Removal]:
        """Return what of a group can go beside what goes already."""
        own = parents_of(remaining(self.traced, [one.root for one in group]))
        why, exact = None, [one for one in group if one.exact]
        for some in (group, exact) if 0 < len(exact) < len(group) else (group,):
            for parents in (self.parents, self.parents | own):
                why = self._fails([*accepted, *some], parents)
                if why is None:
                    self.parents = parents
                    rest = {one.root for one in group} - {one.root for one in some}
                    self._block(rest, "what it puts out is not constant enough")
                    return some
        self._block([one.root for one in group], why or "")
        return ()

    def _groups(self) -> Iterator[list[Removal]]:
        """Yield removals that lie on the same axes of the same parameters together."""
        found: dict[tuple[tuple[str, int], ...], list[Removal]] = {}
        places: dict[int, list[tuple[str, int]]] = {root: [] for root in self.removals}
        for name, axes in self.traced.places.axes.items():
            for number, axis in enumerate(axes):
                if axis is None:
                    continue
                for root in {int(r) for r in self.traced.atoms.roots(axis)} & places.keys():
                    places[root].append((name, number))
        for root, one in self.removals.items():
            found.setdefault(tuple(places[root]), []).append(one)
        yield from found.values()

    def _fails(self, removals: Sequence[Removal], parents: Collection[str]) -> str | None:
        """Return why a network without these classes is not the same, ``None`` where it is."""
        smaller = shrink(self.model, self.traced, removals, {}, parents)
        try:
            self.reference.check(smaller.module)
        except DisagreementError as error:
            return str(error)
        return None

    def why(self, node: Node) -> str:
        """Return why a node does not go, and which other layers write to its places."""
        roots = self.roots[node]
        root = next((root for root in roots if root in self.blocked), None)
        if root is None:
            return LAST
        if self.layers[node[0]].label == "MultiheadAttention":
            return ATTENTION
        if self.traced.atoms.why_fixed(root):
            return self.blocked[root]
        others = self.writers.get(root, set()) - {node[0]}
        if others:
            return f"it shares its place with units of {_some(others)}, and {self.blocked[root]}"
        more = companions(self.traced, self.layers[node[0]], node[1], root)
        return (
            f"it goes only with {more} more of its layer, and {self.blocked[root]}"
            if more
            else self.blocked[root]
        )

    def is_alive(self, node: Node) -> bool:
        """Whether what a node alone puts out varies where it is read: setting it to a constant would show."""
        name, index = node
        for root in self.roots[node]:
            if root in self.varying and not companions(self.traced, self.layers[name], index, root):
                return not self.writers.get(root, set()) - {name}
        return False

    def is_last(self, node: Node) -> bool:
        """Whether a node stays for no other reason than that its layer would be empty."""
        return any(self.blocked.get(root) == LAST for root in self.roots[node])

    def kind(self, node: Node) -> Did:
        """Return what is done about a node that goes."""
        kinds = {self.removals[root].kind for root in self.roots[node]}
        return "merged" if "merged" in kinds else "folded" if "folded" in kinds else "removed"


def _some(names: Collection[str]) -> str:
    first, *rest = sorted(names)
    return (
        first if not rest else f"{first} and {len(rest)} more" if len(rest) > 1 else f"{first} and {rest[0]}"
    )


def _by_key(pairs: Iterable[Mapping[Key, Pair]]) -> dict[Key, list[Pair]]:
    found: dict[Key, list[Pair]] = {}
    for some in pairs:
        for key, pair in some.items():
            found.setdefault(key, []).append(pair)
    return found
