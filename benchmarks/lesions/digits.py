"""scikit-learn's handwritten digits: for training, for choosing thresholds, and for reporting."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

CHOOSING, REPORTING = 300, 300
"""Samples of the probe that thresholds were chosen on, and of the one that figures are reported on."""


@dataclass(frozen=True)
class Digits:
    """Images in [0, 1], ``(N, 64)``, and labels."""

    train: tuple[Tensor, Tensor]
    choosing: tuple[Tensor, Tensor]
    reporting: tuple[Tensor, Tensor]


@cache
def digits() -> Digits:
    """Return the 1,797 digits by a fixed permutation."""
    data = load_digits()
    x = torch.tensor(data.data / 16, dtype=torch.float32)
    y = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(7))
    train, choosing, reporting = order.split([len(x) - CHOOSING - REPORTING, CHOOSING, REPORTING])
    return Digits(*((x[part], y[part]) for part in (train, choosing, reporting)))
