"""What one pass over the probe costs, counted and not timed: choices that rest on it are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nndiag.measures.hvp import mean_loss, second_order
from nndiag.probe.probe import Probe

ELEMENTWISE = 8
"""Operations counted for each entry that a function puts out, beside those of matrix products and convolutions."""
CALL = 1e4
"""Operations counted for each function called, as one vector's part of what calling it in a batched pass costs."""
SECOND_TENSORS = 6
"""Bytes that one vector takes in a batched second backward pass, over those that a forward pass puts out."""
PASS_BYTES = 512 * 2**20
"""What the vectors of one batched pass may take."""
MOST_AT_ONCE = 64
COUNTED = (2, 3)
"""Samples of the two passes that are counted: what a batch takes grows in a straight line with its samples."""
KEPT_BYTES = 512 * 2**20
"""What first-order graphs kept for the next product may take."""


@dataclass(frozen=True)
class Cost:
    """One forward pass over the whole probe: ``work`` in operations, ``batch_bytes`` put out by a batch.

    ``room`` bounds what the vectors of one pass, kept graphs and formed blocks may each take, in bytes.
    """

    work: float
    batch_bytes: int
    batches: int
    room: int = PASS_BYTES

    @property
    def at_once(self) -> int:
        """How many vectors fit into one batched second backward pass."""
        return max(
            1, min(MOST_AT_ONCE, min(PASS_BYTES, self.room) // max(1, SECOND_TENSORS * self.batch_bytes))
        )

    @property
    def keep_graphs(self) -> bool:
        """Whether the first-order graphs of all batches may be kept."""
        room = min(KEPT_BYTES, self.room)
        return self.batches == 1 or SECOND_TENSORS * self.batch_bytes * self.batches <= room


def pass_cost(model: nn.Module, probe: Probe, room: int = PASS_BYTES, batch_size: int | None = None) -> Cost:
    """Count the operations of a forward pass over the probe, from its first samples.

    Args:
        model: the model.
        probe: samples, targets and loss.
        room: as in ``Cost``.
        batch_size: of the batches that functions are taken to be called on, where a budget has made them smaller: what
            is decided by the work must not depend on it.
    """
    few, more = (_counted(model, probe, min(count, len(probe))) for count in COUNTED)
    samples = more.samples - few.samples
    each = (more.work - few.work) / samples if samples else few.work / few.samples
    each_bytes = (more.bytes - few.bytes) / samples if samples else few.bytes / few.samples
    batches = -(-len(probe) // (batch_size or probe.batch_size))
    size = min(len(probe), probe.batch_size)
    return Cost(
        each * len(probe) + batches * (few.work - each * few.samples),
        round(few.bytes + each_bytes * (size - few.samples)),
        -(-len(probe) // size),
        room,
    )


@dataclass(frozen=True)
class _Count:
    """Operations and bytes of a forward pass over so many samples."""

    samples: int
    work: float
    bytes: int


def _counted(model: nn.Module, probe: Probe, count: int) -> _Count:
    batch = next(replace(probe, batch_size=count).batches())
    # with gradients: without, fused layers are one call that nobody can look into
    with second_order(model), FlopCounterMode(display=False) as flops, _Outputs() as outputs:
        mean_loss(model, probe, batch)
    work = flops.get_total_flops() + ELEMENTWISE * outputs.entries + CALL * outputs.calls
    return _Count(len(batch), work, outputs.bytes)


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what every function puts out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = self.entries = self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.entries += tensor.numel()
                self.bytes += tensor.numel() * tensor.element_size()
        return result
