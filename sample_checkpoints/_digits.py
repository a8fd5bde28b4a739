"""scikit-learn's handwritten digits, cut once into training and held-out samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

HELD_OUT = 397
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images in [0, 1], (N, 64), or centred to mean 0 and deviation 1 over all pixels; labels 0 to 9."""

    train_x: Tensor
    train_y: Tensor
    held_x: Tensor
    held_y: Tensor


def digits(*, centred: bool) -> Digits:
    """The 1797 digits: 1400 for training, 397 held out, by a fixed permutation."""
    data = load_digits()
    x = torch.tensor(data.data / 16, dtype=torch.float32)
    if centred:
        x = (x - x.mean()) / x.std()
    y = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, held = order[:-HELD_OUT], order[-HELD_OUT:]
    return Digits(x[train], y[train], x[held], y[held])
