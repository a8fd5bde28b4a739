"""Memory that is used again and again while a training step waits."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Memory for what is needed for a moment: fresh memory takes longer to get than a sum over it."""

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def like(self, values: Tensor) -> Tensor:
        """Return a tensor of that shape and type, to be written to; what it was given out for before is over."""
        if not values.is_contiguous():
            return torch.empty_like(values)
        held = self._held
        kind = (values.dtype, values.device)
        if held is None or (held.dtype, held.device) != kind or held.numel() < values.numel():
            held = self._held = torch.empty_like(values).flatten()
        return held[: values.numel()].view(values.shape)
