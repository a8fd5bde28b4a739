"""Starting nodes anew: fresh incoming weights, and outgoing ones that leave the function as it is.

The outgoing weights of a fresh node are not zero but ``WHISPER`` times what the initialiser of the layer after it
gives. With zeros its incoming weights would have no gradient at all until a first step has moved the outgoing ones, and
a scan between the two would call it without influence. At this size the function changes by less than the tolerance of
the proof, a tenth of it at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.replay.kinds import Layer, Slot
from nndiag.surgery.training.initial import fresh
from nndiag.surgery.training.outlets import Outlet
from nndiag.surgery.training.readings import Arrival, UnitReading, read_arrivals, read_units
from nndiag.surgery.training.ward import Ward

WHISPER = 1e-7
"""Size of the outgoing weights of a fresh node, relative to fresh outgoing weights."""
LEAST_SCALE, MOST_SCALE = 1.0, 3.0
"""How far a fresh row may be scaled for its pre-activation to vary as those of the living nodes do.

Never below what the initialiser gives: living nodes that decay has shrunk are no measure for a start
(`benchmarks/REMEDIES.md`).
"""


@dataclass(frozen=True)
class Restart:
    """A node to start anew; ``twin`` is one that it repeats and that takes its part over."""

    layer: str
    node: int
    twin: int | None = None


@dataclass(frozen=True)
class Heard:
    """What a network that has not been touched yet puts into the weights after some of its units.

    ``slopes`` maps a weight, a unit's first entry and its twin's to the slopes of the one on the other.
    """

    arrivals: Mapping[str, Arrival]
    slopes: Mapping[tuple[str, int, int], Tensor]


def hear(ward: Ward, restarts: Sequence[Restart]) -> Heard:
    """Read what arrives at the weights after the nodes that are to start anew."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    wanted: set[str] = set()
    for restart in restarts:
        for outlet in ward.paths[restart.layer].outlets_of(restart.node):
            wanted.add(outlet.weight)
            if restart.twin is not None:
                pairs.setdefault(outlet.weight, []).extend(
                    zip(_entries(outlet, restart.node), _entries(outlet, restart.twin), strict=True)
                )
    with ward.looking():
        arrivals, slopes = read_arrivals(
            ward.model, ward.probe, ward.owners, wanted, {name: torch.tensor(p) for name, p in pairs.items()}
        )
    of_pairs = {
        (name, one, other): slopes[name][place].reshape(1)
        for name, listed in pairs.items()
        for place, (one, other) in enumerate(listed)
        if name in slopes
    }
    return Heard(arrivals, of_pairs)


def reinitialise(ward: Ward, restarts: Sequence[Restart], heard: Heard, whisper: float = WHISPER) -> None:
    """Start nodes anew, layer by layer in the order of the network, so that each layer sees what those before it do.

    Args:
        ward: the network, changed in place.
        restarts: the nodes, all of layers whose outlets are known.
        heard: what arrives at the weights after them, read before anything is changed.
        whisper: size of their outgoing weights, relative to fresh ones.
    """
    by_layer: dict[str, list[Restart]] = {}
    for name in ward.layers:
        chosen = [restart for restart in restarts if restart.layer == name]
        if chosen:
            by_layer[name] = chosen
    anew = {name: _mask(ward.layers[name], chosen) for name, chosen in by_layer.items()}
    for name, chosen in by_layer.items():
        for outlet in ward.paths[name].outlets:
            hears = [restart for restart in chosen if outlet in ward.paths[name].outlets_of(restart.node)]
            _hand_over(ward, outlet, hears, heard, anew)
            _hush(ward, outlet, hears, anew.get(outlet.layer), whisper)
        _refill(ward, ward.layers[name], anew[name].nonzero().flatten())


def wake(ward: Ward, layer: str, queries: Tensor, keys: Tensor) -> None:
    """Start keys anew that are multiplied with queries as good as zero, and let these be a whisper.

    Args:
        ward: the network, changed in place.
        layer: the packed projection that both are rows of.
        queries: their indices.
        keys: those of their partners, in the same order.
    """
    drawn = fresh_weights(ward, layer)
    for slot in ward.layers[layer].slots:
        rows = slot.rows(drawn[slot.parameter])
        ward.set_rows(slot, keys, rows[keys])
        ward.set_rows(slot, queries, WHISPER * rows[queries])


def folds_exactly(outlet: Outlet, constant: Tensor) -> bool:
    """Whether a constant output can go into the bias after it without a rest."""
    return not bool(constant.any()) or (outlet.bias is not None and not outlet.padded)


def entries_of(outlet: Outlet, unit: int, arrival: Arrival) -> Arrival:
    """Return what arrives from one unit alone."""
    part = slice(outlet.start + unit * outlet.inner, outlet.start + (unit + 1) * outlet.inner)
    return Arrival(arrival.mean[part], arrival.variance[part], arrival.least[part], arrival.largest[part])


def staying(ward: Ward, outlet: Outlet, anew: Tensor | None) -> Tensor:
    """Return, of the rows of a weight that hear units, which are not of nodes of a mask ``anew``.

    A node of a recurrent layer has a row in every gate.
    """
    layer = ward.layers[outlet.layer]
    slot = next(slot for slot in layer.weights if slot.parameter == outlet.weight)
    stay = torch.ones(layer.nodes, dtype=torch.bool) if anew is None else ~anew
    return stay.repeat(slot.outer)


def fresh_weights(ward: Ward, layer: str) -> dict[str, Tensor]:
    """Return weights and biases of a layer as they would be drawn in this attempt, by name."""
    return fresh(ward.model, ward.layers[layer], ward.initialiser, ward.generator(layer))


def _entries(outlet: Outlet, unit: int) -> range:
    return range(outlet.start + unit * outlet.inner, outlet.start + (unit + 1) * outlet.inner)


def _mask(layer: Layer, restarts: Sequence[Restart]) -> Tensor:
    return torch.zeros(layer.nodes, dtype=torch.bool).index_fill(
        0, torch.tensor([restart.node for restart in restarts]), True
    )


def _hand_over(
    ward: Ward, outlet: Outlet, restarts: Sequence[Restart], heard: Heard, anew: Mapping[str, Tensor]
) -> None:
    """Give what the nodes did to their twins and to the biases after them."""
    tensors = ward.tensors()
    weight = tensors[outlet.weight]
    stay = staying(ward, outlet, anew.get(outlet.layer))
    added = torch.zeros(len(stay), dtype=torch.float64)
    for restart in restarts:
        own = entries_of(outlet, restart.node, heard.arrivals[outlet.weight])
        constant = own.mean.clone()
        heard_by = outlet.heard_by(weight, restart.node)
        if restart.twin is not None:
            slopes = torch.cat(
                [
                    heard.slopes[outlet.weight, one, other]
                    for one, other in zip(
                        _entries(outlet, restart.node), _entries(outlet, restart.twin), strict=True
                    )
                ]
            )
            constant -= slopes * entries_of(outlet, restart.twin, heard.arrivals[outlet.weight]).mean
            _add_outgoing(ward, outlet, restart, slopes, stay[heard_by])
        constant = constant.nan_to_num(0.0, 0.0, 0.0)
        amount = outlet.constant(weight, restart.node, constant)
        added[heard_by] += amount.nan_to_num(0.0, 0.0, 0.0)
    if outlet.bias is not None and bool(added.any()):
        bias = tensors[outlet.bias]
        exact = bias.double().cpu() + torch.where(stay, added, 0.0)
        bias.copy_(ward.rounded(outlet.bias, exact.to(bias)))


def _add_outgoing(ward: Ward, outlet: Outlet, restart: Restart, slopes: Tensor, stay: Tensor) -> None:
    """Add the outgoing weights of a node, times the slope, to those of its twin."""
    weight = ward.tensors()[outlet.weight]
    source, target = outlet.outgoing(weight, restart.node), outlet.outgoing(weight, restart.twin or 0)
    slope = slopes.to(weight) if outlet.form in ("rows", "columns") else slopes[0].to(weight)
    changed = ward.rounded(outlet.weight, target + source * slope)
    target.copy_(torch.where(_per_row(stay, target), changed, target))


def _hush(
    ward: Ward, outlet: Outlet, restarts: Sequence[Restart], anew: Tensor | None, whisper: float
) -> None:
    """Let the nodes be heard as a whisper by the nodes that stay; those that start anew too will draw their own."""
    weight = ward.tensors()[outlet.weight]
    drawn = fresh_weights(ward, outlet.layer)[outlet.weight].to(weight)
    whispers = drawn * (whisper * _no_louder(ward, outlet, drawn, anew))
    stays = staying(ward, outlet, anew)
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for restart in restarts:
        stay = stays[outlet.heard_by(weight, restart.node)]
        view = outlet.outgoing(weight, restart.node)
        fresh_view = ward.rounded(outlet.weight, outlet.outgoing(whispers, restart.node))
        view.copy_(torch.where(_per_row(stay, view), fresh_view, view))
        outlet.outgoing(mask, restart.node).fill_(True)
    ward.forget(outlet.weight, mask)


def _no_louder(ward: Ward, outlet: Outlet, drawn: Tensor, anew: Tensor | None) -> float:
    """Return the factor that keeps fresh weights from being larger than those of the nodes that stay."""
    layer, weight = ward.layers[outlet.layer], ward.tensors()[outlet.weight]
    slot = next(slot for slot in layer.weights if slot.parameter == outlet.weight)
    norms, usual = slot.rows(weight).norm(dim=1), slot.rows(drawn).norm(dim=1).median()
    if anew is not None:
        norms = norms[~anew.to(norms.device)]
    known = norms[norms.isfinite() & (norms > 0)]
    return 1.0 if not len(known) or usual <= 0 else min(1.0, float(known.median() / usual))


def _per_row(stay: Tensor, view: Tensor) -> Tensor:
    return stay.to(view.device).reshape(-1, *([1] * (view.dim() - 1)))


def _refill(ward: Ward, layer: Layer, nodes: Tensor) -> None:
    """Draw incoming weights, of the size of the living nodes', and a bias at which half of the probe fires.

    The biases of recurrent units are drawn with the weights: a gate has no edge.
    """
    tensors = ward.tensors()
    others = torch.ones(layer.nodes, dtype=torch.bool).index_fill(0, nodes, False)
    drawn = fresh_weights(ward, layer.name)
    for slot in layer.weights:
        rows = slot.rows(drawn[slot.parameter])[nodes]
        norms = slot.rows(tensors[slot.parameter]).norm(dim=1)[others.to(tensors[slot.parameter].device)]
        known = norms[norms.isfinite() & (norms > 0)]
        usual = slot.rows(drawn[slot.parameter]).norm(dim=1).median()
        scale = max(1.0, float(known.median() / usual)) if len(known) and usual > 0 else 1.0
        ward.set_rows(slot, nodes, rows * scale)
    recurs = len(layer.weights) > 1
    for slot in layer.biases:
        rows = slot.rows(drawn[slot.parameter])[nodes] if recurs else torch.zeros(len(nodes), slot.width)
        ward.set_rows(slot, nodes, rows)
    norm = ward.paths[layer.name].norm
    reading = _read(ward, layer.name)
    if reading is None:
        return
    if recurs:
        _turn_round(ward, layer.slots, nodes[(reading.raw[nodes] == 0).all(dim=1)])
    elif norm is None:
        reading = _match_spread(ward, layer, nodes, others, reading)
        _set_bias(ward, layer, nodes, reading)
    for passed in ward.paths[layer.name].norms:
        settle_norm(ward, passed.layer, passed.weight, passed.channels(nodes), anew=passed.early)


def _read(ward: Ward, layer: str) -> UnitReading | None:
    with ward.looking():
        return read_units(ward.model, ward.probe, ward.owners, [layer]).get(layer)


def _match_spread(
    ward: Ward, layer: Layer, nodes: Tensor, others: Tensor, reading: UnitReading
) -> UnitReading:
    """Scale fresh rows so that their pre-activations vary as those of the living nodes do, within bounds."""
    spread = reading.raw.std(dim=1, correction=0)
    living = spread[others & spread.isfinite() & (spread > 0) & (reading.active > 0)]
    if not len(living):
        return reading
    own = spread[nodes]
    scales = torch.where(own > 0, living.median() / own, 1.0).clamp(LEAST_SCALE, MOST_SCALE)
    for slot in layer.weights:
        tensor = ward.tensors()[slot.parameter]
        ward.set_rows(slot, nodes, slot.rows(tensor)[nodes] * scales[:, None].to(tensor))
    return _read(ward, layer.name) or reading


def _set_bias(ward: Ward, layer: Layer, nodes: Tensor, reading: UnitReading) -> None:
    """Set ``b = edge − median(z)``: half of the samples and positions are above the activation's edge."""
    edge = 0.0 if reading.activation is None or reading.activation.edge is None else reading.activation.edge
    middle = reading.raw[nodes].median(dim=1).values
    if layer.biases:
        ward.set_rows(layer.biases[0], nodes, (edge - middle)[:, None])
        return
    mute = (reading.raw[nodes] <= edge).all(dim=1)  # without a bias: turned round it fires
    _turn_round(ward, layer.weights, nodes[mute])


def _turn_round(ward: Ward, slots: Sequence[Slot], nodes: Tensor) -> None:
    """Give what nodes have in some parameters the other sign."""
    for slot in slots if len(nodes) else ():
        tensor = ward.tensors()[slot.parameter]
        ward.set_rows(slot, nodes, -slot.rows(tensor)[nodes.to(tensor.device)])


def settle_norm(ward: Ward, name: str, weight: str, channels: Tensor, anew: bool) -> None:
    """Give channels of a normalisation the statistics of the probe, and where asked a usual scale and no shift."""
    layer, tensors = ward.layers[name], ward.tensors()
    if anew:
        scales = layer.weights[0].rows(tensors[weight])[:, 0]
        rest = torch.ones(layer.nodes, dtype=torch.bool, device=scales.device)
        rest[channels.to(scales.device)] = False
        known = scales[rest & scales.isfinite()].abs()
        usual = float(known[known > 0].median()) if bool((known > 0).any()) else 1.0
        ward.set_rows(layer.weights[0], channels, torch.full((len(channels), 1), usual))
        for slot in layer.biases:
            ward.set_rows(slot, channels, torch.zeros(len(channels), 1))
    mean, variance = tensors.get(f"{name}.running_mean"), tensors.get(f"{name}.running_var")
    if mean is None or variance is None:
        return
    with ward.looking():
        arrivals, _ = read_arrivals(ward.model, ward.probe, ward.owners, [weight], {})
    arrival = arrivals[weight]
    for buffer, values, own in (
        (mean, arrival.mean, f"{name}.running_mean"),
        (variance, arrival.variance, f"{name}.running_var"),
    ):
        known = values[channels].to(buffer)
        there = known.isfinite() & ((known > 0) if buffer is variance else known.isfinite())
        places = channels.to(buffer.device)
        buffer[places] = torch.where(there, ward.rounded(own, known), buffer[places])
