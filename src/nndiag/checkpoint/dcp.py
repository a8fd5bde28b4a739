"""Directories of torch.distributed.checkpoint, as FSDP and torchtitan write them.

Every rank wrote its own parts; here they become whole tensors in one process, each when it is asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from nndiag.checkpoint.confine import require_inside
from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.dcp_metadata import METADATA, DcpMetadata, read_metadata
from nndiag.checkpoint.dcp_optimizer import is_of_optimizer, read_optimizers
from nndiag.checkpoint.dcp_reader import GuardedFiles, read_tensor
from nndiag.checkpoint.inventory import MAX_REUSE
from nndiag.checkpoint.lazy import LazyTensors, renamed, spec
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.places import NOT_WEIGHTS
from nndiag.checkpoint.plain import named_entries, plain_number
from nndiag.checkpoint.progress import PROGRESS_KEYS, Progress, from_tree
from nndiag.checkpoint.record import Place
from nndiag.checkpoint.source import Watched, damaged
from nndiag.errors import InputError

Keys = tuple[str | int, ...]


def is_dcp(folder: Path) -> bool:
    """Return whether a directory is a checkpoint of torch.distributed.checkpoint."""
    return (folder / METADATA).is_file()


def read_dcp(folder: Path, permission: Permission = NOTHING) -> Contents:
    """Open a directory of torch.distributed.checkpoint.

    Raises:
        InputError: it is damaged, names files outside of it, or names what would have to run as code.
    """
    require_inside(folder, folder / METADATA)
    metadata_file = Watched(folder / METADATA)
    metadata = read_metadata(metadata_file)
    named = [chunk.file for tensor in metadata.tensors.values() for chunk in tensor.chunks]
    files = GuardedFiles(folder, (*named, *(chunk.file for chunk in metadata.values.values())))
    _check_claims(folder, metadata, files)
    paths = {name: path_of(metadata, name) for name in (*metadata.tensors, *metadata.values)}
    stored = dict(metadata.tensors)
    specs = {name: spec(tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    tensors = LazyTensors(specs, lambda name: read_tensor(files, stored[name], permission))
    return Contents(
        "dcp",
        _places(tensors, paths),
        read_optimizers(tensors, metadata.values, paths, lambda chunk: files.read(chunk, permission)),
        said=_progress(tensors, metadata, paths, files, permission),
        tree=dict(specs),
        files={METADATA: metadata_file, **files.open},
    )


def _check_claims(folder: Path, metadata: DcpMetadata, files: GuardedFiles) -> None:
    """Refuse parts that lie beyond their files, and tensors that together claim far more than the files hold.

    Raises:
        InputError: there are such.
    """
    claimed = 0
    for tensor in metadata.tensors.values():
        for chunk in tensor.chunks:
            claimed += chunk.length
            if chunk.start + chunk.length > files.open[chunk.file].size:
                raise damaged(files.open[chunk.file].path, "a part ends beyond the file")
    held = sum(file.size for file in files.open.values())
    if claimed > MAX_REUSE * held:
        raise InputError(
            folder, f"is refused: its parts claim {claimed} bytes where its files hold {held}",
            "take it from its source again",
        )  # fmt: skip


def path_of(metadata: DcpMetadata, name: str) -> Keys:
    """Return the keys, from the outside inwards, that a flat name was made of."""
    return metadata.paths.get(name, (name,))


def _places(tensors: LazyTensors, paths: Mapping[str, Keys]) -> tuple[Place, ...]:
    """Return every dict of tensors that is no optimiser's, scheduler's or data loader's state."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        *outer, last = paths[name]
        if not is_of_optimizer(paths[name]) and not any(str(key).lower() in NOT_WEIGHTS for key in outer):
            found[".".join(map(str, outer))][str(last)] = name
    return tuple(
        Place(key, renamed(tensors, names))
        for key, names in found.items()
        if any(tensors.specs[name].dim() for name in names.values())
    )


def _progress(
    tensors: LazyTensors,
    metadata: DcpMetadata,
    paths: Mapping[str, Keys],
    files: GuardedFiles,
    permission: Permission,
) -> Progress:
    """Return step and epoch from values that are called so, at the top or one level below (``train_state.step``)."""
    found: dict[str, object] = {}
    for name, path in sorted(paths.items(), key=lambda pair: len(pair[1])):
        wanted = len(path) <= 2 and (path[-1] in PROGRESS_KEYS or path == ("train_state",))
        if not wanted or is_of_optimizer(path):
            continue
        if name in tensors:
            if not tensors.specs[name].dim():
                found.setdefault(str(path[-1]), plain_number(tensors[name]))
            continue
        try:
            value = files.read(metadata.values[name], permission)
        except InputError:
            continue  # other values of the run may be of any class; where it was is a help and no more
        pairs = dict(named_entries(value)) if isinstance(value, dict) else {str(path[-1]): value}
        for key, number in pairs.items():
            found.setdefault(key, number)
    return from_tree(found, is_weights=False)
