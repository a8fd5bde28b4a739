"""The factor of a softmax: ``B = diag(p) − ppᵀ = S Sᵀ`` with ``S = diag(√p)(I − √p√pᵀ)``, for any number of classes.

``S w`` costs as much as ``w`` is long, and ``S W Wᵀ Sᵀ + S (I − W Wᵀ) Sᵀ = B`` for any orthonormal ``W``: so the
leading directions can be taken by themselves and the rest drawn, ``S (I − W Wᵀ) ε``, and nothing is lost whatever
``W`` is. Here ``W`` spans the most probable classes. Within it the first are turned to the eigenvectors of
``Wᵀ Sᵀ S W``; with all classes in ``W`` these are the eigenvectors of ``B`` itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nndiag.probe.factor import Draw

APART = 512
"""So many directions of a sample, over all its positions, are kept apart; the rest is mixed."""
TURNED = 32
"""So many of the most probable classes of a position are turned to eigenvectors."""
MIXTURES = 256
"""The rest of a sample is divided into so many mixtures, at least one a position, so that no one is heavy."""
CHUNK = 2**20
"""Numbers in float64 that are worked on at once, or one sample where it has more."""


class SoftmaxFactor:
    """Atoms of a softmax at every position: the leading directions one by one, then mixtures of the other classes.

    Args:
        output: logits or log-probabilities.
        class_axis: 1 or -1.
        weights: of the positions, ``(batch, positions)`` float64; see ``labels``.
        most: directions of a sample that are kept apart, over all its positions, where not ``APART``.
    """

    negative = 0.0

    def __init__(self, output: Tensor, class_axis: int, weights: Tensor, most: int | None = None) -> None:
        self._output, self._axis, self._roots = output.detach(), class_axis, weights.sqrt()
        batch, classes, positions = len(output), output.shape[class_axis], weights.shape[1]
        self._positions, self._classes = positions, classes
        self.entries = positions * classes
        self._apart = min(classes, (APART if most is None else most) // positions)
        turned = min(self._apart, TURNED)
        device = output.device
        self._places = torch.zeros(batch, positions, self._apart, dtype=torch.long, device=device)
        self._turns = output.new_zeros(batch, positions, turned, turned)
        rest = classes - self._apart
        self._mixtures = min(rest, -(-MIXTURES // positions))
        self._owner = torch.arange(classes, device=device) % max(1, self._mixtures)
        atoms = self._apart + self._mixtures
        traces = torch.zeros(batch, positions, atoms, dtype=torch.float64, device=device)
        for part in self._parts(torch.arange(batch, device=device)):
            traces[part] = self._look(part)
        leading, mixed = torch.split(traces, [self._apart, self._mixtures], dim=2)
        self.weights = torch.cat([leading.flatten(1), mixed.flatten(1)], dim=1)
        self.ranks = torch.ones(positions * atoms, dtype=torch.long, device=device)
        # an upper bound, and more than one: what is mixed never counts as exact
        self.ranks[positions * self._apart :] = max(2, -(-classes // max(1, self._mixtures)))
        self.total = float(self.weights.sum(dim=1).mean())

    def held(self, batch: int) -> int:
        """The classes that are apart, and the eigenvectors of those that are turned."""
        turned = self._turns.element_size() * self._turns.shape[2] ** 2
        return batch * self._positions * (8 * self._apart + turned)

    def combine(self, signs: Tensor, samples: Tensor, draw: Draw) -> Tensor:
        """``S r`` with ``r = W a + m ε``: ``a`` the signs of the directions, ``m`` those of the mixtures."""
        seeds = self._output.new_empty(len(samples), *self._output.shape[1:])
        rows = torch.arange(len(samples), device=samples.device)
        for part in self._parts(rows):
            seeds[part] = self._part(part, signs[part].double(), samples[part], draw).to(seeds.dtype)
        return seeds

    def _look(self, part: Tensor) -> Tensor:
        """Choose the directions of these samples and return the traces, mixtures last."""
        p = self._probabilities(part)
        squares = p.square().sum(dim=2, keepdim=True)
        traces = p * (1 - 2 * p + squares)  # ‖S e_c‖²
        top, places = p.topk(self._apart, dim=2)
        leading, others = traces.gather(2, places), traces.scatter(2, places, 0.0)
        mixed = traces.new_zeros(*traces.shape[:2], self._mixtures)
        if self._mixtures:
            mixed.index_add_(2, self._owner, others)
        turned = self._turns.shape[2]
        first = top[..., :turned]
        roots = first.sqrt()
        pairs = first[..., :, None] + first[..., None, :] - squares[..., None]
        inner = torch.diag_embed(first) - roots[..., :, None] * roots[..., None, :] * pairs
        values, vectors = torch.linalg.eigh(inner)
        leading[..., :turned] = values.flip(-1)
        self._places[part], self._turns[part] = places, vectors.flip(-1).to(self._turns)
        found = torch.cat([leading, mixed], dim=2)
        return found.clamp_min(0) * self._roots[part].square()[..., None]

    def _part(self, rows: Tensor, signs: Tensor, samples: Tensor, draw: Draw) -> Tensor:
        count, positions, apart = len(samples), self._positions, self._apart
        roots = self._probabilities(samples).sqrt_()
        single = signs[:, : positions * apart].reshape(count, positions, apart)
        mixed = signs[:, positions * apart :].reshape(count, positions, self._mixtures)
        r = torch.zeros_like(roots)
        if bool(mixed.any()):
            drawn = draw(rows, positions * self._classes).reshape(r.shape)
            r += drawn.to(r).mul_(mixed[..., self._owner])
        if apart:
            turned = self._turns.shape[2]
            first = torch.einsum("npck,npk->npc", self._turns[samples].double(), single[..., :turned])
            r.scatter_(2, self._places[samples], torch.cat([first, single[..., turned:]], dim=2))
        s = roots * (r - roots * (roots * r).sum(dim=2, keepdim=True)) * self._roots[samples][..., None]
        s = s.transpose(1, 2) if self._axis == 1 else s
        return s.reshape(count, *self._output.shape[1:])

    def _probabilities(self, samples: Tensor) -> Tensor:
        """``p``, ``(rows, positions, classes)`` float64: formed anew each time, since outputs can be large."""
        logits, count = self._output[samples].double(), len(samples)
        if self._axis == 1:
            logits = logits.reshape(count, self._classes, self._positions).transpose(1, 2)
        return torch.softmax(logits.reshape(count, self._positions, self._classes), dim=2)

    def _parts(self, rows: Tensor) -> Iterator[Tensor]:
        yield from torch.split(rows, max(1, CHUNK // (self._positions * self._classes)))
