"""Embeddings: a node is a row of the table, its gradient the sum of those at the places where it was looked up.

Gradients are held as ``(batch, places, width)``, with the weight that a bag gives to every place already in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay.kinds.base import Kind, Layer, Share, Use
from nndiag.replay.units import Units


class Embedding(Kind):
    """``z[n, t] = W[id[n, t]]``, hence ``J[n, i] = Σ_{t: id = i} g[n, t]``; the row of ``padding_idx`` gets none."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "embedding": (
            "input",
            "weight",
            "padding_idx",
            "max_norm",
            "norm_type",
            "scale_grad_by_freq",
            "sparse",
        )
    }

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where looking up changes nothing, and gradients are not scaled by how often a row is looked up."""
        plain = use.option("max_norm", None) is None and not use.option("scale_grad_by_freq", False)
        return plain and use.weight.along_first and use.layer.nodes == use.weight.shape[0]

    def units(self, output: Tensor, layer: Layer) -> Units | None:
        """The outputs are no units: every row puts out all of them."""
        return None

    def leading(self, use: Use, output_shape: Sequence[int]) -> Sequence[int]:
        """Everything before the features."""
        return output_shape[:-1]

    def spread(self, use: Use, output: Tensor) -> Tensor:
        """One position a row."""
        return output.reshape(-1, output.shape[-1], 1)

    def inputs(self, share: Share) -> Tensor:
        """Return which rows were looked up, ``(batch, places)``."""
        return torch.cat([_samples_first(use, self.places(use)[0]) for use in share.uses], dim=1)

    def gather(self, share: Share, gradients: Sequence[Tensor]) -> Tensor:
        """Return the gradients at every place, ``(batch, places, width)``."""
        parts = []
        for use, place in zip(share.uses, share.places, strict=True):
            ids, weights = self.places(use)
            at_rows = gradients[place].reshape(len(ids), -1, share.width)
            parts.append(_samples_first(use, at_rows * weights.to(at_rows)[:, :, None]))
        return torch.cat(parts, dim=1)

    def places(self, use: Use) -> tuple[Tensor, Tensor]:
        """Return ids and weights of what each row of the output is made of, both ``(rows, places)``."""
        ids = use.input.reshape(-1, 1)
        return ids, ids != _padding(use)

    def jacobian(self, share: Share, inputs: Tensor, g: Tensor, start: int, stop: int) -> Tensor:
        """``J[n, i] = Σ_{t: id = i} g[n, t]``."""
        count = stop - start
        samples, places = torch.nonzero((inputs >= start) & (inputs < stop), as_tuple=True)
        found = g.new_zeros(len(g) * count, share.width)
        found.index_add_(0, samples * count + inputs[samples, places] - start, g[samples, places])
        return found.reshape(len(g), count, share.width)

    def squared_norms(self, share: Share, inputs: Tensor, g: Tensor) -> Tensor:
        """Add up the gradients of each row that a sample looked up, then square."""
        nodes = share.layer.nodes
        owners = (torch.arange(len(g), device=g.device)[:, None] * nodes + inputs).flatten()
        present, place = torch.unique(owners, return_inverse=True)
        sums = g.new_zeros(len(present), share.width).index_add_(0, place, g.flatten(0, 1))
        found = g.new_zeros(len(g) * nodes)
        found[present] = sums.square().sum(dim=1)
        return found.reshape(len(g), nodes)

    def reach(self, share: Share, g: Tensor) -> Tensor:
        """Add up what reaches the places of each row."""
        found = g.new_zeros(share.layer.nodes, dtype=torch.float64)
        return found.index_add_(0, self.inputs(share).flatten(), g.double().square().sum(dim=2).flatten())

    def lookups(self, share: Share) -> Tensor | None:
        """Return how often each row was looked up where it counts."""
        found = torch.zeros(share.layer.nodes, dtype=torch.float64, device=share.uses[0].input.device)
        for use in share.uses:
            ids, weights = self.places(use)
            found.index_add_(0, ids.flatten(), (weights != 0).flatten().double())
        return found

    def respond(self, share: Share, rows: Tensor) -> Tensor:
        """Return the rows of another table."""
        return F.embedding(self.inputs(share), rows)

    def contract(self, share: Share, g: Tensor, response: Tensor) -> Tensor:
        """Add ``⟨g, v⟩`` up over the places of each row."""
        at_places = (g * response).sum(dim=2)
        found = g.new_zeros(len(g), share.layer.nodes)
        return found.scatter_add_(1, self.inputs(share), at_places)

    def merged(self, share: Share) -> Share:
        """Return the share as it is."""
        return share

    def weigh(self, share: Share, q: Tensor, g: Tensor, sums: Tensor) -> None:
        """Multiply each place by the number of its row."""
        sums.addcmul_(q.gather(1, self.inputs(share))[:, :, None], g)

    def pull_back(self, share: Share, cotangents: Tensor) -> Tensor:
        """Add the cotangents up over the places of each row."""
        found = cotangents.new_zeros(share.layer.nodes, share.width)
        return found.index_add_(0, self.inputs(share).flatten(), cotangents.flatten(0, 1))


class EmbeddingBag(Embedding):
    """``z[n] = Σ_t c_t W[id_t]`` over a bag, ``c`` one, one over its length, or given."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "embedding_bag": (
            "input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse",
            "per_sample_weights", "include_last_offset", "padding_idx",
        )
    }  # fmt: skip

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where a bag is a sum or a mean."""
        return super().fits(use, output) and use.option("mode", "mean") != "max"

    def places(self, use: Use) -> tuple[Tensor, Tensor]:
        """Return ids and weights of every bag; short bags are filled with places of weight zero."""
        ids, inside = _bags(use)
        counted = inside & (ids != _padding(use))
        weights = counted.to(torch.float64)
        given = use.inputs.get("per_sample_weights")
        if given is not None:
            weights[inside] *= given.flatten().double()
        if use.option("mode", "mean") == "mean":
            weights = weights / counted.sum(dim=1, keepdim=True).clamp_min(1)
        return ids, weights


def _padding(use: Use) -> int:
    """Return the row that takes no gradient, or one that is never looked up."""
    padding = use.option("padding_idx", None)
    if padding is None:
        return -1
    return int(padding) % use.weight.nodes


def _bags(use: Use) -> tuple[Tensor, Tensor]:
    """Return the ids of every bag, ``(bags, longest)``, and which places are inside it."""
    ids, offsets = use.input, use.inputs.get("offsets")
    if offsets is None:
        return ids, torch.ones_like(ids, dtype=torch.bool)
    if use.option("include_last_offset", False):
        offsets = offsets[:-1]
    lengths = torch.diff(offsets, append=offsets.new_tensor([len(ids)]))
    places = torch.arange(int(lengths.max()) if len(lengths) else 0, device=ids.device)
    inside = places[None] < lengths[:, None]
    filled = ids.new_zeros(inside.shape)
    filled[inside] = ids
    return filled, inside


def _samples_first(use: Use, values: Tensor) -> Tensor:
    """Return ``(rows, places, ...)`` as ``(batch, places, ...)``."""
    before, after = use.samples.before, use.samples.after
    if before == after == 1:
        return values
    batch, rest = use.samples.batch(len(values)), values.shape[2:]
    seen = values.reshape(before, batch, after, values.shape[1], *rest).movedim(0, 1)
    return seen.reshape(batch, math.prod((before, after, values.shape[1])), *rest)
