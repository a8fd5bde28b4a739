"""Refining the curvature of nodes by exact products: which layers, which nodes, and their blocks solved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nndiag.errors import InputError, ModelError
from nndiag.measures.blocks import GramBlocks, OuterBlocks
from nndiag.measures.curvature import LayerCurvature, joined, layer_curvature
from nndiag.measures.exact.applied import positions_of, signed_blocks, vectors_of
from nndiag.measures.exact.blocks import TiledBlocks, formed_blocks
from nndiag.measures.exact.bound import estimated_traces, layer_bound
from nndiag.measures.exact.choose import Signs, choose_nodes
from nndiag.measures.exact.cost import pass_cost
from nndiag.measures.exact.places import places_of
from nndiag.measures.exact.positions import PositionBlocks
from nndiag.measures.exact.record import ExactLayer, ExactSettings, LayerBound, Refinement
from nndiag.measures.exact.shares import TILED_PRODUCTS, Price, Share, divided
from nndiag.measures.hvp import HessianProducts, NoSecondDerivativeError
from nndiag.measures.plan import LayerRule, Progress, Update
from nndiag.measures.weights import numbers
from nndiag.probe.probe import Probe
from nndiag.records.measured import Floats, Mask

if TYPE_CHECKING:
    from nndiag.replay.kinds import Layer

SignedBlocks = OuterBlocks | PositionBlocks | GramBlocks
FORMED_BYTES = 256 * 2**20
"""What the exact blocks of one tile of nodes may take."""
TOGETHER = 512
"""Vectors that a tile of nodes is multiplied with at least, where it has so many nodes: progress is told between tiles,
and each of them takes a forward and a backward pass anew."""


def refine(
    model: nn.Module,
    probe: Probe,
    layers: Sequence[Layer],
    found: Mapping[str, LayerCurvature],
    settings: ExactSettings,
    update: Update | None = None,
    among: Mapping[str, Mask] | None = None,
    preferred: Callable[[], Mapping[str, Floats]] = dict,
    progress: Progress = lambda *_: None,
) -> Refinement:
    """Return exact curvature of nodes: λ_max, λ_min, trace and what follows from them, of the mean loss over the probe.

    Args:
        model: inside ``undisturbed``.
        probe: samples, targets and loss.
        layers: those that the probe reached and that are not known to be piecewise linear.
        found: Gauss-Newton curvature by layer; a layer in which samples see each other is missing, and then no sample
            runs without the others of its batch.
        settings: the mode, the solver and what it may cost.
        update: the update rule; preconditioned blocks are those of the Hessian too.
        among: by layer, the nodes to look at, where not all: others, such as rows of an embedding that were never
            looked up, are not refined in any mode.
        preferred: asked where not all nodes can be refined: returns by layer the nodes that ``auto`` should prefer,
            larger numbers first, zero for no wish.
        progress: told what is being done.

    Returns:
        Per layer the nodes refined, in ``auto`` with the bound of the layer where not all are. The note says what could
        not be done.

    Raises:
        InputError: in mode ``"hessian"``, the probe has no targets.
        NoSecondDerivativeError: in mode ``"hessian"``, an operation has no second derivative.
        ModelError: in mode ``"hessian"``, second derivatives are not finite.
    """
    try:
        wishes = _Wishes(among or {}, preferred)
        return _Refining(model, probe, layers, found, settings, update, wishes).run(progress)
    except (InputError, NoSecondDerivativeError) as error:
        if settings.mode == "hessian":
            raise
        return Refinement(note=f"curvature stays that of Gauss-Newton blocks: {error.why}")


@dataclass(frozen=True)
class _Wishes:
    """Which nodes the caller wants looked at, and which of them first."""

    among: Mapping[str, Mask]
    preferred: Callable[[], Mapping[str, Floats]]

    @cached_property
    def priority(self) -> Mapping[str, Floats]:
        """By layer, larger numbers for nodes to look at first."""
        return self.preferred()

    def nodes(self, layer: Layer) -> NDArray[np.intp]:
        """Return the nodes of a layer to look at."""
        mask = self.among.get(layer.name)
        return np.arange(layer.nodes, dtype=np.intp) if mask is None else np.flatnonzero(mask)


@dataclass
class _Telling:
    """Tells of the vectors that were multiplied, ``done`` of ``total``; those of one layer end at ``end``."""

    progress: Progress
    what: str
    done: int
    end: int
    total: int

    def add(self, vectors: int) -> None:
        """Tell of so many more, though a layer may take more than was thought."""
        self.done = min(self.done + vectors, self.end)
        self.progress(self.what, self.done, self.total)


class _Refining:
    """One refinement: its arguments, and what is the same for all layers."""

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        layers: Sequence[Layer],
        found: Mapping[str, LayerCurvature],
        settings: ExactSettings,
        update: Update | None,
        wishes: _Wishes,
    ) -> None:
        self.model, self.probe, self.update, self.wishes = model, probe, update, wishes
        self.found, self.settings = found, settings
        self.hessian = settings.mode == "hessian"
        self.apart = all(layer.name in found for layer in layers)
        self.layers = [layer for layer in layers if self.hessian or layer.name in found]
        self.generator = torch.Generator().manual_seed(settings.solver.seed)
        self.room = min(FORMED_BYTES, settings.room)

    def run(self, progress: Progress) -> Refinement:
        if not self.layers:
            return Refinement()
        apart = [layer for layer in self.layers if layer.name in self.found]
        self.like = HessianProducts(self.model, self.probe).like  # says at once that targets are missing
        self.positions = positions_of(self.model, self.probe, apart)
        self.cost = pass_cost(self.model, self.probe, self.settings.room, self.settings.batch_size)
        shares, refined = self._shares(), {}
        work = {
            one.name: shares[one.name].nodes * self._vectors(one) for one in self.layers if one.name in shares
        }
        done, total = 0, sum(work.values())
        for layer in self.layers:
            if layer.name in shares:
                what, end = f"curvature of layer {layer.name}, exactly", done + work[layer.name]
                telling = _Telling(progress, what, done, end, total)
                refined[layer.name] = self._layer(layer, shares[layer.name], telling)
                done = end
        return Refinement(refined, self._note(shares))

    def _vectors(self, layer: Layer) -> int:
        """Return how many vectors it takes to know the exact block of one node."""
        return vectors_of(layer, self.positions)

    def _shares(self) -> dict[str, Share]:
        """Divide what may be spent; asked for all exact blocks, nobody counts."""
        count = {layer.name: len(self.wishes.nodes(layer)) for layer in self.layers}
        if self.hessian:
            return {name: Share(nodes, whole=True, formed=True) for name, nodes in count.items()}
        prices = {
            layer.name: Price(count[layer.name], self._vectors(layer), self._formable(layer))
            for layer in self.layers
        }
        return divided(prices, self.settings.work / self.cost.work)

    def _formable(self, layer: Layer) -> bool:
        """Whether the exact block of one node may be held: the same whatever the room, as results must be."""
        return layer.name in self.positions or self._whole_bytes(layer) <= FORMED_BYTES

    def _whole_bytes(self, layer: Layer) -> int:
        """Return what the exact block of one node takes, with the shares of the folds."""
        return (self.probe.fold_count + 1) * layer.size**2 * self.like.element_size()

    def _tile(self, layer: Layer, each: int) -> int:
        """Return how many nodes are treated at a time, by what each of them takes."""
        return max(1, min(self.room // each, -(-TOGETHER // self._vectors(layer))))

    def _layer(self, layer: Layer, share: Share, telling: _Telling) -> ExactLayer:
        telling.add(0)
        products = HessianProducts(self.model, self.probe, layer.names, self.cost.keep_graphs)
        places = places_of(layer, products)
        bound, nodes = None, self.wishes.nodes(layer)
        if not share.whole:
            bound, signs = self._signs(layer, products, places)
            nodes = nodes[self._chosen(layer, nodes, share.nodes, signs)]
        kept, parts = [], []
        for tile, part in self._curvatures(layer, products, places, nodes, share.formed, telling):
            kept.append(tile)
            parts.append(part)
        if not parts:
            return ExactLayer(np.zeros(0, dtype=np.intp), None, bound)
        return ExactLayer(np.concatenate(kept), joined(parts), bound)

    def _signs(
        self, layer: Layer, products: HessianProducts, places: Tensor
    ) -> tuple[LayerBound, Signs | None]:
        bound, vector = layer_bound(products, self.generator)
        if bound.excluded or bound.smallest >= 0:
            return bound, None
        mass = vector.double().square()
        share = (mass[places.clamp_min(0)] * (places >= 0)).sum(dim=1)
        trace = estimated_traces(products, places, self.generator)
        return bound, Signs(numbers(share), numbers(trace) - self.found[layer.name].per_node["trace"])

    def _chosen(
        self, layer: Layer, nodes: NDArray[np.intp], count: int, signs: Signs | None
    ) -> NDArray[np.intp]:
        """Return the places among ``nodes`` of those to refine."""
        measures = self.found[layer.name].per_node
        margin, wish = measures.get("stability_margin"), self.wishes.priority.get(layer.name)
        return choose_nodes(
            count,
            measures["lambda_max"][nodes],
            None if margin is None else margin[nodes],
            None if wish is None else wish[nodes],
            None if signs is None else Signs(signs.share[nodes], signs.residual[nodes]),
            self.generator,
        )

    def _curvatures(
        self,
        layer: Layer,
        products: HessianProducts,
        places: Tensor,
        nodes: NDArray[np.intp],
        formed: bool,
        telling: _Telling,
    ) -> list[tuple[NDArray[np.intp], LayerCurvature]]:
        """Return the curvature of the nodes, tile by tile, without those whose second derivatives are not finite."""
        if len(nodes) == 0:
            return []
        if layer.name in self.positions:
            applied = self._applied(layer, products, places, nodes, telling)
            if applied is not None:
                return applied
            formed = self.hessian or layer.size <= TILED_PRODUCTS  # else it would cost more than was thought
        folds, own = self._folds(layer), places[torch.from_numpy(nodes).to(places.device)]
        samples, at_once = len(self.probe), self.cost.at_once
        if not formed:
            tiled = TiledBlocks(products, folds, own, samples, at_once, self.settings.solver.seed)
            return self._solved(layer, nodes, tiled)
        tile, found = self._tile(layer, self._whole_bytes(layer)), []
        for start in range(0, len(nodes), tile):
            part = slice(start, start + tile)
            found += self._solved(layer, nodes[part], formed_blocks(folds, own[part], samples, at_once))
            telling.add(len(nodes[part]) * layer.size)
        return found

    def _applied(
        self,
        layer: Layer,
        products: HessianProducts,
        places: Tensor,
        nodes: NDArray[np.intp],
        telling: _Telling,
    ) -> list[tuple[NDArray[np.intp], LayerCurvature]] | None:
        """Return the curvature of nodes that are applied once, ``None`` where that is not so after all."""
        positions, samples = self.positions[layer.name], len(self.probe)
        item, each = self.like.element_size(), self._whole_bytes(layer)
        entries = samples * positions.count**2  # the curvature of one node at its positions
        kept = (samples * positions.count * layer.size + entries) * item
        summed = kept > max(self.room, each)
        tile, found = self._tile(layer, each if summed else entries * item), []
        for start in range(0, len(nodes), tile):
            part = nodes[start : start + tile]
            index = torch.from_numpy(part)
            blocks = signed_blocks(self.model, self.probe, layer, positions, index, self.cost.at_once, summed)
            if blocks is None:
                return None
            if positions.count > 1 and start == 0:
                own = places[index.to(places.device)]
                if not _agree(blocks, products, own, self.settings.solver.seed):
                    return None
            found += self._solved(layer, part, blocks)
            telling.add(len(part) * positions.count)
        return found

    def _folds(self, layer: Layer) -> list[HessianProducts]:
        count = self.probe.fold_count
        return [
            HessianProducts(
                self.model,
                self.probe,
                layer.names,
                self.cost.keep_graphs,
                slice(fold, None, count),
                self.apart,
            )
            for fold in range(count)
        ]

    def _solved(
        self,
        layer: Layer,
        nodes: NDArray[np.intp],
        blocks: SignedBlocks | TiledBlocks,
    ) -> list[tuple[NDArray[np.intp], LayerCurvature]]:
        image = blocks.product(torch.ones(len(nodes), layer.size).to(blocks.like))
        finite = torch.isfinite(image).all(dim=1).cpu()
        if not bool(finite.all()):
            if self.hessian:
                why = (
                    f"second derivatives are not finite in {int((~finite).sum())} nodes of layer {layer.name}"
                )
                raise ModelError("--curvature hessian", why, "use --curvature ggn")
            keep = torch.nonzero(finite).flatten()
            if len(keep) == 0:
                return []
            nodes, blocks = nodes[keep.numpy()], blocks.restricted(keep.to(image.device))
        rule = LayerRule() if self.update is None else self.update.layer_rule(layer)
        if rule.divisor is not None:
            rule = rule.of(torch.from_numpy(nodes).to(rule.divisor.device))
        solved = layer_curvature(blocks, self.probe.fold_sizes, self.settings.solver, rule)
        if isinstance(blocks, TiledBlocks):
            estimate, error = (numbers(found) for found in blocks.estimated_traces)
            own = {"trace": np.full(len(nodes), np.nan), "trace_estimate": estimate, "trace_se": error}
            solved = replace(solved, per_node=solved.per_node | own)
        return [(nodes, solved)]

    def _note(self, shares: Mapping[str, Share]) -> str | None:
        left = len(self.layers) - len(shares)
        if left == 0 or self.hessian:
            return None
        which = "every layer" if left == len(self.layers) else f"{left} of {len(self.layers)} layers"
        return f"exact blocks of {which} would cost too much for --curvature auto, and stay those of Gauss-Newton"


def _agree(blocks: SignedBlocks, products: HessianProducts, places: Tensor, seed: int) -> bool:
    """Whether a block multiplies a random vector as the network does.

    It does not where an axis of as many positions as there are samples was taken for theirs.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(blocks.nodes, blocks.size, generator=generator).to(blocks.like)
    images = blocks.product(vectors)
    largest = images.norm(dim=1).nan_to_num(-1.0, -1.0).argmax()[None]
    expected = products.product_within(places[largest], vectors[largest], 1)
    rounding = torch.finfo(images.dtype).eps ** (1 / 3)
    return bool((images[largest] - expected).norm() <= rounding * expected.norm())
