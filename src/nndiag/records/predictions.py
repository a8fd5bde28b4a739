"""What the network puts out over the probe, as plain numbers: the outputs' spread, and its choices of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """A classifier's probabilities, one row a sample.

    ``predicted`` counts the samples for which each class is the most probable, ``present`` those that have it as their
    label (``None`` without labels), ``found`` those of them for which it is also the most probable. ``entropy`` is the
    mean of ``−Σ p log p`` in nats, ``highest`` the largest probability of every sample, ``right`` that of its label.
    """

    predicted: tuple[int, ...]
    entropy: float
    highest: Floats
    present: tuple[int, ...] | None = None
    found: tuple[int, ...] | None = None
    right: Floats | None = None


@dataclass(frozen=True)
class Predictions:
    """The outputs over the probe.

    ``spread`` is the largest, over the outputs, of highest minus lowest value on the probe; of probabilities where the
    loss has a softmax or a sigmoid. ``scale`` is what it is measured against: 1 for probabilities, the same of the
    targets where there are any, else the root mean square of the outputs. ``inputs_vary`` says that not all samples are
    the same.
    """

    spread: float
    scale: float
    inputs_vary: bool
    choices: Choices | None = None
