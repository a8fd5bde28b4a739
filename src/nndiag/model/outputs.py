"""How much a list of layers puts out, worked out from shapes alone, before anything is computed.

A few words of configuration (``["AdaptiveAvgPool1d", 2000000000]``) would have one sample take gigabytes.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nndiag.errors import UsageError

LARGEST = 2**28
"""Numbers that one layer may put out for one sample."""


def check_outputs(model: nn.Sequential, inputs: Tensor, source: str) -> None:
    """Refuse layers that put out absurdly much for a sample.

    Where a layer refuses its input the check ends: the same will be said when the network is called.

    Args:
        model: the network.
        inputs: the samples, along the first axis.
        source: where the layers stand, for messages.

    Raises:
        UsageError: a layer puts out more than ``LARGEST`` numbers.
    """
    x = torch.empty_like(inputs[:1], device="meta")
    for position, layer in enumerate(model):
        found = _output(layer, x)
        if found is None:
            return
        x = found
        if x.numel() > LARGEST:
            what = f"{source} entry {position} ({type(layer).__name__})"
            raise UsageError(what, f"puts out {x.numel():,} numbers for one sample", "correct its sizes")


def _output(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Return what a layer puts out, without its numbers; ``None`` where it cannot be called with ``x``."""
    empty = {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}
    training = layer.training
    layer.eval()  # a normalisation in training refuses a single sample
    try:
        with warnings.catch_warnings(), contextlib.suppress(Exception), torch.no_grad():
            warnings.simplefilter("ignore")
            found: Tensor = functional_call(layer, empty, (x,))
            return found
        return None
    finally:
        layer.train(training)
