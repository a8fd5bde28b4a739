"""What is to be said of a measurement beside its numbers: what was left out, and how far curvature holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nndiag.measures.layer_records import CLAIMED_NOISE
from nndiag.measures.replaying import Replay
from nndiag.records.measured import LayerMeasures, Mask

UNTOUCHED = "the forward pass does not use it"


def not_measured(replay: Replay, exact: Mapping[str, Mask]) -> list[tuple[str, str]]:
    """Return the layers that no forward pass used, and those whose samples could not be told apart, with the reason.

    Args:
        replay: after its first pass over the probe.
        exact: by layer the nodes with exact blocks, for which samples need not be told apart.
    """
    untouched = [(one.name, UNTOUCHED) for one in replay.layers if one.name not in replay.reached]
    mixed = [
        (name, f"{reason}; its curvature alone is known" if name in exact else reason)
        for name, reason in sorted(replay.left_out.items())
    ]
    return untouched + mixed


def sentences(replay: Replay, layers: Sequence[LayerMeasures]) -> list[str]:
    """Say what part of the curvature is in no block, and where random signs made blocks coarse."""
    share, noise = replay.negative_share, replay.noise
    said = []
    if share > 0:
        what = f"the loss is not convex: {100 * share:.2g} % of its curvature in the output is negative"
        said.append(f"{what}, and in no Gauss-Newton block; --curvature hessian has it")
    if noise > CLAIMED_NOISE and any(layer.curvature_kind in ("ggn", "mixed") for layer in layers):
        what = "Gauss-Newton blocks are known through random signs"
        said.append(f"{what}, with noise of {100 * noise:.2g} % of their trace; --curvature hessian has none")
    return said
