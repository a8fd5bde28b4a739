"""Findings about nodes along a run: small functions from arrays to hits.

None depends on how many checkpoints there are. What is compared lies half a run apart, with numbers between two
checkpoints taken from the line between them; shares are of time, in steps where the steps are known.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nndiag.comparing.motion import turn_between
from nndiag.comparing.run import Floats, LayerRun, Mask, Run, at
from nndiag.rules.base import Hit, where

if TYPE_CHECKING:
    from nndiag.comparing.settling import Settling

_STILL_GROWING = 0.3
"""At the end of the run a norm must grow by at least this share of its mean pace over the last half: it goes on."""

_LEVELS = ("weights", "activations", "gradients", "curvature")


@dataclass(frozen=True)
class RunContext:
    """What a rule may know beside the layer: the whole run, the thresholds, and how the model settled."""

    run: Run
    thresholds: Mapping[str, float]
    settling: Settling | None = None

    def threshold(self, name: str) -> float:
        """Return a threshold by name."""
        return self.thresholds[name]

    def at_mid(self, values: Floats) -> Floats:
        """Return ``values`` ``(checkpoints, …)`` in the middle of the run."""
        return at(values, self.run.times, self.run.when(0.5))

    @property
    def long(self) -> bool:
        """Whether there are enough checkpoints to speak of a trend."""
        return len(self.run.times) > 2


def newly_degenerate(layer: LayerRun, context: RunContext) -> Iterator[Hit]:
    """Degenerate at the last checkpoint, and not at the first."""
    new = layer.degenerate[-1] & ~layer.degenerate[0] & _judged_before(layer, context)
    since = since_when(layer)
    for i in where(new):
        message, steady = (
            "degenerate at the end of the run, and not at its beginning",
            i not in layer.unsteady,
        )
        evidence = {
            **_since(context.run, int(since[i])), "verdict": layer.last_verdict(i), "steady": steady,
        }  # fmt: skip
        yield Hit(i, message if steady else f"{message}; not in every fold", evidence, sure=steady)


def absorbed(layer: LayerRun, context: RunContext) -> Iterator[Hit]:
    """Degenerate ``absorbed_share`` before the end and at the end, and its weights point where they pointed then.

    What no gradient moved was degenerate in between too, whether there were checkpoints to see it or not. Where
    directions are not known, every checkpoint in between must say so.
    """
    if not context.long:
        return
    share, run = context.threshold("absorbed_share"), context.run
    first = _last_before(run, 1 - share)
    held, since = time_share(layer, run, 1 - share), since_when(layer)
    moved = turn_between(layer, first, -1)
    told = np.isnan(moved) | (layer.fan_in == 1)
    still = np.where(told, held >= 1 - 1e-9, (moved <= context.threshold("moving_weights")) & (held >= 0.5))
    for i in where(layer.degenerate[-1] & layer.degenerate[first] & still):
        born = bool(layer.degenerate[0, i]) and int(since[i]) == 0
        message = "degenerate for so long that training will not bring it back"
        if born:
            message = "degenerate all along the run"
        evidence = {**_since(run, int(since[i])), "share_of_run": float(held[i] * share), "threshold": share}
        steady = i not in layer.unsteady
        yield Hit(
            i, message if steady else f"{message}; not in every fold", evidence, sure=steady and not born
        )


def shrinking(layer: LayerRun, context: RunContext) -> Iterator[Hit]:
    """``‖w(T)‖ ≤ shrink_ratio · ‖w(T/2)‖``, and it fell over the first half and the last quarter too."""
    if not context.long or layer.fan_in == 1:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(layer.weights)
        times, run = context.run.times, context.run
        start, mid, late, end = logs[0], context.at_mid(logs), at(logs, times, run.when(0.75)), logs[-1]
        ratio = np.exp(end - mid)
        falling = (ratio <= context.threshold("shrink_ratio")) & (mid < start) & (late < mid) & (end < late)
        half_life = 0.5 * run.span * np.log(2) / (mid - end)
    message = "its weights shrink towards zero, and have done so all along the run"
    for i in where(falling):
        yield Hit(i, message, {
            "norm_ratio": float(ratio[i]), "threshold": context.threshold("shrink_ratio"),
            "half_life": float(half_life[i]), "unit": run.clock, "weight_norm": float(layer.weights[-1, i]),
        })  # fmt: skip


def diverging(layer: LayerRun, context: RunContext) -> Iterator[Hit]:
    """``‖θ(T)‖ ≥ growth_ratio · ‖θ(T/2)‖``, still growing at the end, with a direction that has settled."""
    yield from _diverging(layer, context, oscillating=False)


def oscillating(layer: LayerRun, context: RunContext) -> Iterator[Hit]:
    """The same growth, while the weights turn back from step to step."""
    yield from _diverging(layer, context, oscillating=True)


def _diverging(layer: LayerRun, context: RunContext, *, oscillating: bool) -> Iterator[Hit]:
    if not context.long:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(layer.norms)
        mid, end, times = context.at_mid(logs), logs[-1], context.run.times
        least, ratio = context.threshold("growth_ratio"), np.exp(end - mid)
        pace, usual = (end - logs[-2]) / (times[-1] - times[-2]), (end - mid) / (0.5 * context.run.span)
        growing = (ratio >= least) & (mid >= logs[0]) & (pace >= _STILL_GROWING * usual)
    back, thrown = turning(layer, context.run), _thrown(layer, context.run)
    jumping = (back > context.threshold("turned_back")) | thrown
    message = "its weights grow without bound along a settled direction"
    if oscillating:
        message = "its weights grow without bound and turn back from step to step"
    for i in where(growing & (jumping if oscillating else ~jumping)):
        yield Hit(i, message, {
            "norm_ratio": float(ratio[i]), "threshold": context.threshold("growth_ratio"),
            "direction_change": None if np.isnan(back[i]) else float(back[i]), "source": bool(thrown[i]),
        })  # fmt: skip


def bias_frozen(layer: LayerRun, context: RunContext) -> Iterator[Hit]:
    """The bias stands still over the last half of the run while the weights move."""
    if not context.long or np.isnan(layer.biases).all() or layer.directions is None:
        return
    largest = float(np.nanmax(np.abs(layer.biases)))
    if largest == 0.0:
        return
    first = _from_mid_on(context.run)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a node without any bias
        spread = np.nanmax(layer.biases[first:], axis=0) - np.nanmin(layer.biases[first:], axis=0)
        turned = turn_between(layer, first, -1)
        moving = np.maximum(turned, np.abs(layer.weights[-1] / layer.weights[first] - 1))
        frozen = (spread <= context.threshold("frozen_bias") * largest) & (
            moving > context.threshold("moving_weights")
        )
    message = "its bias stands still while its weights move"
    for i in where(frozen & ~layer.degenerate[-1]):
        yield Hit(i, message, {
            "bias_drift": float(spread[i]), "threshold": context.threshold("frozen_bias") * largest,
            "moved": float(moving[i]),
        })  # fmt: skip


def recovered(layer: LayerRun, context: RunContext) -> Iterator[Hit]:
    """Degenerate for ``recovered_share`` of the run, and not at its end."""
    if not context.long:
        return
    least, held = context.threshold("recovered_share"), time_share(layer, context.run, 0.0)
    there = ~layer.degenerate[-1] & _judged_now(layer)
    for i in where(there & (held >= least)):
        last = int(np.flatnonzero(layer.degenerate[:, i])[-1])
        evidence = {
            "share_of_run": float(held[i]),
            "threshold": least,
            "recovered_at": _time(context.run, last + 1),
        }
        yield Hit(i, "was degenerate for long and is no longer", evidence)


def loss_flat_norm_growing(run: Run, context: RunContext) -> Iterator[Hit]:
    """The loss of the last two quarters is the same, while ``‖θ‖`` grows as fast as a logarithm or faster."""
    found = context.settling
    if found is None or not (found.loss_settled and found.norm_growing):
        return
    yield Hit(None, "the loss has settled while the parameters still grow: this is no fixed point", {
        "loss_change": found.loss_change, "threshold": context.threshold("settled_loss"),
        "norm_growth": found.norm_growth, "growth_per_doubling": found.growth_per_doubling,
        "growth_error": found.growth_error,
    })  # fmt: skip


def since_when(layer: LayerRun) -> Floats:
    """Return the checkpoint from which on each node is degenerate to the end; their number where it is not."""
    count = len(layer.states)
    healthy = ~layer.degenerate[::-1]
    found: Floats = np.where(healthy.any(axis=0), count - healthy.argmax(axis=0), 0)
    return found


def time_share(layer: LayerRun, run: Run, start: float) -> Floats:
    """Return for which share of the time from ``start`` (a share of the run) to the end each node is degenerate.

    A state counts from half the way to the checkpoint before until half the way to the next.
    """
    edges = np.concatenate([run.times[:1], (run.times[1:] + run.times[:-1]) / 2, run.times[-1:]])
    edges = np.clip(edges, run.when(start), None)
    length = run.when(1.0) - run.when(start)
    if length <= 0:
        length, edges = 1.0, np.append(np.zeros(len(run.times)), 1.0)  # only the end is left
    found: Floats = (np.diff(edges) / length) @ layer.degenerate
    return found


def turning(layer: LayerRun, run: Run) -> Floats:
    """Return the median distance of the directions of successive checkpoints over the last half of the run."""
    if layer.directions is None:
        return np.full(layer.nodes, np.nan)
    part = layer.directions[_from_mid_on(run) :]
    difference = np.diff(part, axis=0)
    if not len(difference):
        return np.full(layer.nodes, np.nan)
    # NaN comes last; of an even number the lower one in the middle: a single jump among few checkpoints is no habit
    distances = np.sort(np.sqrt(np.einsum("tnk,tnk->tn", difference, difference)), axis=0)
    middle = np.maximum((~np.isnan(distances)).sum(axis=0) - 1, 0) // 2
    found: Floats = np.take_along_axis(distances, middle[None], axis=0)[0].astype(float)
    return found


def _thrown(layer: LayerRun, run: Run) -> Mask:
    """Which nodes are above the stability threshold at most checkpoints of the last half."""
    found: Mask = 2 * (layer.states[_from_mid_on(run) :] == ord("s")).sum(axis=0) > len(
        run.times
    ) - _from_mid_on(run)
    return found


def _from_mid_on(run: Run) -> int:
    """Return the first checkpoint of the last half of the run; two are left at least."""
    return min(int(np.searchsorted(run.times, run.when(0.5) - 1e-9 * run.span)), len(run.times) - 2)


def _last_before(run: Run, share: float) -> int:
    """Return the last checkpoint at or before a share of the run."""
    return max(int(np.searchsorted(run.times, run.when(share) + 1e-9 * run.span)) - 1, 0)


def _judged_before(layer: LayerRun, context: RunContext) -> Mask:
    """Which nodes could have been called degenerate at the first checkpoint, at the level it was measured at."""
    first, last = (context.run.marks[place].level for place in (0, -1))
    as_deep = _depth(first) >= _depth(last)
    there: Mask = (layer.states[0] != ord(" ")) & ((layer.states[0] != ord("u")) | as_deep)
    return there


def _judged_now(layer: LayerRun) -> Mask:
    found: Mask = ~np.isin(layer.states[-1], np.frombuffer(b" x", np.uint8))
    return found


def _depth(level: str) -> int:
    return _LEVELS.index(level) if level in _LEVELS else 0


def _since(run: Run, place: int) -> dict[str, float | int | str | None]:
    return {"since": _time(run, place), "unit": run.clock}


def _time(run: Run, place: int) -> float:
    return float(run.times[min(place, len(run.times) - 1)])
