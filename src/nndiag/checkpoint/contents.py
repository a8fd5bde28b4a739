"""What the reader of a format hands over: everything in a checkpoint but its path and its hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nndiag.checkpoint.optimizers import find_optimizers
from nndiag.checkpoint.places import find_places
from nndiag.checkpoint.plain import named_entries, plain_value
from nndiag.checkpoint.progress import UNKNOWN, Progress, from_tree
from nndiag.checkpoint.record import Place, SavedOptimizer
from nndiag.checkpoint.source import Watched
from nndiag.checkpoint.zero_parts import require_whole


@dataclass(frozen=True)
class Contents:
    """What lies in one checkpoint.

    ``format`` is its name in reports; ``tree`` the loaded value, where it was loaded whole; ``said`` where in training
    the checkpoint itself says it was written. ``files`` are those that it was read from, by their names in its
    directory, or a single file under ``""``: what its hash is over.
    """

    format: str
    places: tuple[Place, ...]
    optimizers: tuple[SavedOptimizer, ...] = ()
    said: Progress = UNKNOWN
    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    tree: object = None
    files: Mapping[str, Watched] = field(default_factory=dict)


def contents_of_tree(path: Path, form: str, tree: object) -> Contents:
    """Sort a value that torch loaded: weights, optimiser state, progress, hyper-parameters.

    Raises:
        InputError: a tensor of it is not dense, or it is one rank's part of a DeepSpeed checkpoint.
    """
    require_whole(path, tree)
    places = find_places(path, tree)
    hyper_parameters = plain_value(dict(named_entries(tree)).get("hyper_parameters"))
    return Contents(
        format=form,
        places=places,
        optimizers=find_optimizers(path, tree),
        said=from_tree(tree, is_weights=bool(places) and places[0].key == ""),
        hyper_parameters=hyper_parameters if isinstance(hyper_parameters, dict) else {},
        tree=tree,
    )
