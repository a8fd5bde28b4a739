"""One rank's part of a DeepSpeed ZeRO checkpoint, told by what it holds.

Stages 1 and 2 cut up the optimiser's state, and ``module`` in ``mp_rank_00_model_states.pt`` is whole; stage 3 cuts up
the weights as well and leaves empty tensors in their places.
"""

from __future__ import annotations

from pathlib import Path

from torch import Size, Tensor

from nndiag.checkpoint.deepspeed import zero_refusal
from nndiag.checkpoint.plain import named_entries

_OF_A_RANK = frozenset({"partition_count", "single_partition_of_fp32_groups", "fp32_flat_groups"})


def require_whole(path: Path, tree: object) -> None:
    """Refuse a loaded value that holds one rank's part of weights or optimiser state.

    Raises:
        InputError: it does.
    """
    entries = dict(named_entries(tree))
    state = dict(named_entries(entries.get("optimizer_state_dict")))
    if _OF_A_RANK & state.keys() or _lacks_weights(entries):
        raise zero_refusal(path)


def _lacks_weights(entries: dict[str, object]) -> bool:
    """Return whether a parameter of which the shape is told is empty in the module's own state."""
    told, weights = entries.get("param_shapes"), dict(named_entries(entries.get("module")))
    groups = told if isinstance(told, list | tuple) else [told]
    shapes = {name: shape for group in groups for name, shape in named_entries(group)}
    return any(
        isinstance(shape, Size) and isinstance(weight, Tensor) and Tensor.numel(weight) < shape.numel()
        for name, shape in shapes.items()
        if (weight := weights.get(name)) is not None
    )
