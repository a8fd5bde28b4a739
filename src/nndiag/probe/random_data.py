"""``random:SHAPE``: inputs drawn at random, to look at a network without data.

They say what the network does with noise and nothing about data: whatever rests on them is marked as such.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from nndiag.errors import UsageError
from nndiag.probe.named import Named
from nndiag.probe.takes import Takes

PREFIX = "random:"
SAMPLES = 64
"""How many are drawn where nobody says."""
LARGEST = 2**30
_SHAPE = re.compile(r"\d{1,9}(x\d{1,9})*")
_TOKENS = re.compile(r"tokens:(\d{1,9})")


def random_samples(spec: str, limit: int | None, seed: int, takes: Takes) -> Named:
    """Draw samples: ``random:3x32x32`` of a standard normal, ``random:tokens:128`` of the model's vocabulary, each
    token alike.

    Args:
        spec: the shape of one sample.
        limit: how many to draw.
        seed: of the generator.
        takes: the model's vocabulary.

    Raises:
        UsageError: the shape is none, too large, or the vocabulary is not known.
    """
    words, count = spec.removeprefix(PREFIX), SAMPLES if limit is None else limit
    what, generator = f"--data {spec}", torch.Generator().manual_seed(seed)
    tokens = _TOKENS.fullmatch(words)
    if tokens is None and _SHAPE.fullmatch(words) is None:
        raise UsageError(what, "is no shape of a sample", "write e.g. random:3x32x32, or random:tokens:128")
    shape = [int(tokens[1])] if tokens else [int(size) for size in words.split("x")]
    if not 0 < math.prod(shape) * count <= LARGEST:
        raise UsageError(what, f"{count} samples of it are none, or too many numbers", "give another shape")
    if tokens is None:
        return Named({"x": torch.randn(count, *shape, generator=generator)})
    if takes.vocabulary is None:
        raise UsageError(what, "the model does not say how many tokens it knows", "give it data")
    if takes.longest is not None and shape[0] > takes.longest:
        raise UsageError(
            what, f"the model takes {takes.longest} tokens", f"write random:tokens:{takes.longest}"
        )
    drawn = torch.randint(0, takes.vocabulary, (count, *shape), generator=generator)
    return Named({"x": drawn, **_labels(drawn, takes)})


def _labels(tokens: Tensor, takes: Takes) -> dict[str, Tensor]:
    """Return the tokens as what a language model is to predict; there is nothing to hide in noise."""
    return {"y": tokens} if takes.loss in ("causal_lm", "masked_lm") else {}
