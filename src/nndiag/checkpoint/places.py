"""Where the weights lie inside a file: every dict that is mostly named tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.optimizers import is_optimizer
from nndiag.checkpoint.plain import MAX_DEPTH, named_entries, plain_tensor
from nndiag.checkpoint.record import Place

NOT_WEIGHTS = frozenset(
    {
        "lr_scheduler",
        "lr_schedulers",
        "scheduler",
        "schedulers",
        "callbacks",
        "loops",
        "scaler",
        "grad_scaler",
    }
    | {"rng_state", "rng_states", "hyper_parameters", "hparams", "datamodule_hyper_parameters"}
    | {"dataloader", "train_state"}
)
"""Keys under which tensors are something else."""


def find_places(path: Path, tree: object) -> tuple[Place, ...]:
    """Return every place in a loaded file that holds weights, outermost first.

    A place is a dict in which more than half of the entries are tensors with names, at least one of which
    has a dimension (a dict of losses is none). Optimiser state, schedulers and the like are passed over.

    Args:
        path: the file's name.
        tree: what the file holds.

    Raises:
        InputError: a tensor in one of the places is not dense.
    """
    return tuple(_walk(path, tree, "", MAX_DEPTH, set()))


def _walk(path: Path, tree: object, key: str, depth: int, seen: set[int]) -> Iterator[Place]:
    # A pickle may contain itself: each dict is visited once.
    if not isinstance(tree, dict) or id(tree) in seen or is_optimizer(tree):
        return
    seen.add(id(tree))
    tensors = {name: value for name, value in named_entries(tree) if isinstance(value, Tensor)}
    others = sum(1 for name in dict.keys(tree) if name not in tensors and name != "_metadata")
    if len(tensors) > others and any(Tensor.dim(tensor) for tensor in tensors.values()):
        yield Place(key, {name: plain_tensor(path, name, tensor) for name, tensor in tensors.items()})
    if depth == 0:
        return
    for name, value in named_entries(tree):
        if not (name.lower() in NOT_WEIGHTS or name.lower().startswith("optim")):
            yield from _walk(path, value, f"{key}.{name}" if key else name, depth - 1, seen)
