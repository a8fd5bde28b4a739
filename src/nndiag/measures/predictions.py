"""The network's own outputs over the probe, added up batch by batch: their spread, and the classes chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.measures.weights import numbers
from nndiag.probe.labels import IGNORED
from nndiag.probe.loss import Loss
from nndiag.records.predictions import Choices, Predictions


class Range:
    """The lowest and the highest value of every column, over all rows that it is told of."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take rows, ``(rows, columns)``."""
        low, high = rows.amin(dim=0).double().cpu(), rows.amax(dim=0).double().cpu()
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    @property
    def width(self) -> float:
        """The largest width of a column."""
        if self._low is None or self._high is None:
            return 0.0
        return float((self._high - self._low).max())


class PredictionSums:
    """Sums over the outputs of a network; told of one batch after the other."""

    def __init__(self, loss: Loss | None) -> None:
        self._loss = loss
        self._outputs, self._targets, self._inputs = Range(), Range(), Range()
        self._squares = 0.0
        self._entries = 0
        self._chosen: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._highest: list[Tensor] = []
        self._right: list[Tensor] = []
        self._entropy = 0.0
        self._classes = 0

    def add(self, inputs: tuple[Tensor, ...], output: Tensor, targets: Tensor | None) -> None:
        """Take the outputs of a batch, with its inputs and its targets as the loss takes them."""
        for x in inputs[:1]:
            self._inputs.add(x.detach().reshape(len(x), -1).float())
        if not bool(torch.isfinite(output).all()):
            return
        values = self._probabilities(output)
        self._outputs.add(values)
        if self._form not in ("softmax", "sigmoid"):
            self._squares += float(values.double().square().sum())
            self._entries += values.numel()
            if targets is not None and targets.shape == output.shape:
                self._targets.add(targets.reshape(len(targets), -1))
        if self._form == "softmax" and output.dim() == 2:
            self._choose(values, targets)

    def record(self) -> Predictions | None:
        """Return what was seen; ``None`` where nothing was."""
        if not self._entries and not self._outputs.width and not self._chosen:
            return None
        return Predictions(self._outputs.width, self._scale, self._inputs.width > 0, self._choices())

    @property
    def _form(self) -> str:
        return "" if self._loss is None else self._loss.form

    @property
    def _scale(self) -> float:
        if self._form in ("softmax", "sigmoid"):
            return 1.0
        if self._form == "identity" and self._targets.width > 0:
            return self._targets.width
        root: float = (self._squares / max(1, self._entries)) ** 0.5
        return root

    def _probabilities(self, output: Tensor) -> Tensor:
        """Return rows of outputs, or of probabilities where the loss makes them so, ``(rows, columns)``."""
        wide = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        if self._form == "softmax" and self._loss is not None and self._loss.labels is not None:
            axis = self._loss.labels.class_axis
            rows = wide.movedim(axis, -1)
            return torch.softmax(rows.reshape(-1, rows.shape[-1]), dim=1)
        rows = wide.reshape(len(wide), -1)
        return torch.sigmoid(rows) if self._form == "sigmoid" else rows

    def _choose(self, p: Tensor, targets: Tensor | None) -> None:
        highest, chosen = p.double().max(dim=1)
        self._classes = p.shape[1]
        self._chosen.append(chosen.cpu())
        self._highest.append(highest.cpu())
        self._entropy += float(-(torch.special.xlogy(p.double(), p.double())).sum())
        if targets is None or targets.is_floating_point():
            return
        labels = targets.reshape(-1)
        counted = labels != IGNORED
        right = p.double().gather(1, labels.clamp_min(0)[:, None])[:, 0]
        self._labels.append(labels.cpu())
        self._right.append(torch.where(counted, right, torch.nan).cpu())

    def _choices(self) -> Choices | None:
        if not self._chosen:
            return None
        chosen = torch.cat(self._chosen)
        labels = torch.cat(self._labels) if self._labels else None
        right = None if labels is None else torch.cat(self._right)
        return Choices(
            predicted=self._counts(chosen),
            entropy=self._entropy / len(chosen),
            highest=numbers(torch.cat(self._highest)),
            present=None if labels is None else self._counts(labels[labels != IGNORED]),
            found=None if labels is None else self._counts(labels[labels == chosen]),
            right=None if right is None else numbers(right),
        )

    def _counts(self, labels: Tensor) -> tuple[int, ...]:
        return tuple(torch.bincount(labels, minlength=self._classes).tolist())
