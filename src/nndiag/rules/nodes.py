"""What the nodes of a layer are, told from what was measured of them: a rule on sums is no rule on rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nndiag.records.measured import Floats, LayerMeasures, Mask

BY_THEMSELVES = frozenset(["Embedding", "EmbeddingBag", "Parameter"])
"""Kinds of which a node is put out as it is: a row that is looked up, a token, a position, a scale, a bias."""


def multiplies(layer: LayerMeasures) -> bool:
    """Whether the weights of a node multiply its inputs, so that without them it puts out a constant.

    A table that is also a decoder has outputs of its own, and does.
    """
    if "output_std" in layer.per_node:
        return True
    return layer.observed is None and layer.kind not in BY_THEMSELVES


def single(layer: LayerMeasures) -> bool:
    """Whether a node has one weight: a number has no direction, and may pass through zero on its way."""
    return layer.fan_in == 1


def scales_units(layer: LayerMeasures) -> bool:
    """Whether a node scales one unit of a layer before it, as the channels of a norm do."""
    return single(layer) and layer.nodes > 1 and multiplies(layer) and "output_std" not in layer.per_node


def unobserved(layer: LayerMeasures) -> Mask | None:
    """Return the mask of nodes that the probe never used; ``None`` where it used all."""
    if layer.observed is None or layer.observed.all():
        return None
    mask: Mask = ~layer.observed
    return mask


def absent(layer: LayerMeasures) -> Mask | None:
    """Return the mask of outputs whose class no label of the probe names; ``None`` where there are none."""
    counts = layer.per_node.get("class_samples")
    if counts is None or (counts > 0).all():
        return None
    mask: Mask = counts == 0
    return mask


def while_active(layer: LayerMeasures, squares: Floats) -> Floats:
    """Return means of squares over the samples on which a unit is active, given those over all of them.

    Where it is not active they are zero. Without this a unit that fires on few samples would look weak where it works.
    """
    active = layer.per_node.get("active_fraction")
    if active is None:
        return squares
    mean: Floats = squares / (active + (active == 0))
    return mean


STARTS_BELOW, LEAVES_AT = 1e-5, 1e3
"""A layer starts at zero, too, where no node's weights are longer than the one, and gradients are the other times as
long as they: what healing leaves behind a layer that it started anew."""


def starts_at_zero(layer: LayerMeasures) -> bool:
    """Whether all weights of a layer are zero, or as good as zero, while a step would move every one of its nodes.

    Training makes weights small and never all of them zero: such a layer was set so, as the last one of a residual
    branch often is, and is no sink. Weights that decay are held, or have, no gradient many times as long as they.
    """
    kernel, norm = layer.per_node.get("tangent_kernel"), layer.per_node["weight_norm"]
    if kernel is None or not (kernel > 0).all():
        return False
    gradient = layer.per_node.get("gradient_norm")
    leaves = gradient is not None and (gradient >= LEAVES_AT * norm).all() and (norm <= STARTS_BELOW).all()
    return bool((norm == 0).all() or leaves)
