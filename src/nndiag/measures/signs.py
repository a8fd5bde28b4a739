"""Random signs that belong to a sample: the same however the probe is cut into batches, and as often as it is replayed.

Counter-based: a hash of the seed, the sample, the purpose and the place, so that nothing has to be drawn in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

PER_HASH = 64
_ADD = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLY = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_SIGNS = 2.0 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1) - 1


class SampleSigns:
    """A source of independent signs ±1 for every sample of a probe.

    Args:
        generator: gives the key, one number.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._key = torch.randint(-(2**62), 2**62, (), generator=generator)

    def draw(self, samples: Tensor, purpose: Tensor | int, count: int) -> Tensor:
        """Return so many signs for every sample named, ``(rows, count)`` float32.

        Args:
            samples: places of the samples in the probe, ``(rows,)``; a sample named twice gets the same signs.
            purpose: a number, or one a row, that tells these signs from others of the same sample.
            count: how many.
        """
        purposes = torch.as_tensor(purpose, device=samples.device) * _ADD
        rows = _hashed(_hashed(self._key.to(samples.device) + samples * _ADD) + purposes)
        places = torch.arange(1, -(-count // PER_HASH) + 1, device=samples.device)
        hashes = _hashed(rows[:, None] + places * _ADD)
        signs = _SIGNS.to(samples.device)[hashes.view(torch.uint8).int()]
        return signs.flatten(1)[:, :count]


def _hashed(numbers: Tensor) -> Tensor:
    """Return 64 mixed bits of every number.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the finaliser of SplitMix64).
    """
    mixed = (numbers ^ _shifted(numbers, 30)) * _MULTIPLY[0]
    mixed = (mixed ^ _shifted(mixed, 27)) * _MULTIPLY[1]
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Return the numbers shifted right as if they had no sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)
