"""How much of the loss curvature is sampled, and how exact a solver need then be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nndiag.measures.plan import Plan
from nndiag.probe.curvature import MOST_EXACT
from nndiag.replay.passes import Forward

EXACT_WORK = 2e9
"""Multiplications (columns times those of a forward pass over the probe) up to which all columns are exact."""
EXACT_COLUMNS, SINGLE_COLUMNS = 64, 16
"""Columns up to which that may be: a backward pass has a cost of its own, however small the network. The lesser number
is exact whatever the work where most units have one position a sample: nothing but the backward passes grows with them
there, and these cost less than drawing some and a forward pass anew for every group of samples."""
PRECISE_WORK, PRECISE_COLUMNS = 2e11, MOST_EXACT
"""The same in double precision, where numbers are asked for that are as exact as they can be."""
NOISE, OWN_NOISE = 1.6e-3, 0.3
"""What sampling may cost where all columns are not exact: a standard deviation, as a share of the trace, and the same
of a single sample, as a share of its own. A node sees a part of the samples, and has about one and a half times the
noise of them all in the median, three to six times at the 99th percentile (measured on convolutional networks)."""
SELECTIVE_NOISE, SELECTIVE_OWN_NOISE = 5e-4, 5e-3
"""The same where most units have one position a sample: they are off for whole samples, and see the noise of few."""
LOUDER = 10
"""Where another noise is asked for, a sample may be at least so many times as noisy."""


@dataclass(frozen=True)
class Sampling:
    """What sampling may cost.

    ``noise`` is a standard deviation as a share of the trace, 0 where every column is exact; ``own_noise`` that of a
    sample by itself. ``coarse`` says that solvers need not be exact beyond what a verdict takes: columns share passes,
    or there is too much work to do more.
    """

    noise: float
    own_noise: float
    coarse: bool


def sampling_of(plan: Plan, seen: Forward, columns: int, samples: int, precise: bool) -> Sampling:
    """Return what sampling may cost: nothing where exact columns are cheap.

    Args:
        plan: what is asked for.
        seen: a forward pass over some samples.
        columns: of the loss curvature of a sample.
        samples: of the whole probe.
        precise: whether the network computes in double precision.
    """
    if plan.noise is not None:
        return Sampling(plan.noise, max(OWN_NOISE, LOUDER * plan.noise), plan.noise > 0)
    selective, work = _selective(seen), columns * samples * forward_work(seen)
    if precise and work <= PRECISE_WORK and columns <= PRECISE_COLUMNS:
        return Sampling(0.0, 0.0, coarse=False)
    little = work <= EXACT_WORK
    if (little and columns <= EXACT_COLUMNS) or (selective and columns <= SINGLE_COLUMNS):
        return Sampling(0.0, 0.0, not little)
    if selective:
        return Sampling(SELECTIVE_NOISE, SELECTIVE_OWN_NOISE, not little)
    return Sampling(NOISE, OWN_NOISE, not little)


def _selective(seen: Forward) -> bool:
    """Whether most units have one position a sample."""
    uses = [call for call in seen.calls if call.use is not None]
    units = [
        (call.layer.nodes, math.prod(call.shape) <= len(seen.output) * call.layer.nodes) for call in uses
    ]
    return 2 * sum(nodes for nodes, single in units if single) > sum(nodes for nodes, _ in units)


def forward_work(seen: Forward) -> float:
    """Return the multiplications of a forward pass with the layers' parameters, a sample."""
    batch = seen.output.shape[0]
    return sum(
        math.prod(call.shape) / batch * call.layer.fan_in for call in seen.calls if call.use is not None
    )
