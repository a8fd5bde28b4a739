"""The checkpoints of a run directory, in training order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from nndiag.checkpoint.confine import is_inside
from nndiag.checkpoint.copies import find_copies
from nndiag.checkpoint.deepspeed import is_zero_shard, zero_refusal
from nndiag.checkpoint.directory import foreign, is_checkpoint_directory
from nndiag.checkpoint.identify import is_agent
from nndiag.checkpoint.opening import glance
from nndiag.checkpoint.optimizers import sibling_of
from nndiag.checkpoint.progress import Progress, from_name
from nndiag.checkpoint.source import NoWeightsError, unreadable
from nndiag.errors import InputError, UsageError

_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th", ".pt2"})
_FOREIGN_SUFFIXES = frozenset({".onnx", ".gguf", ".h5", ".hdf5", ".keras", ".tflite", ".msgpack"})
# What trainers leave beside the weights; most of it is pickled code, so that its content cannot tell.
_LEFTOVERS = re.compile(r"(training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth)")
# What is left of a checkpoint of which the writing or the copying was cut short.
_UNFINISHED = re.compile(
    r"\.(safetensors|pt2?|pth|bin|ckpt|th)[._-](te?mp|part(ial)?|incomplete|crdownload|download)\w{0,16}$",
    re.I,
)
_UNFINISHED_FOLDER = re.compile(r"(tmp-?)?(checkpoint|step)-\d+([.-]te?mp)?")
_NAMED = 5

Note = Callable[[str], None]
Refuse = Callable[[InputError], None]


def _raised(error: InputError) -> None:
    raise error


def find_checkpoints(
    path: Path,
    include: str | None = None,
    exclude: Collection[Path] = (),
    note: Note = lambda sentence: None,
    refuse: Refuse = _raised,
) -> tuple[Path, ...]:
    """Return the checkpoints under a path, files and directories, in training order.

    The order is by step, else by epoch, as they say or else their names; those that say neither come last, in natural
    order of their names (``ckpt_9`` before ``ckpt_10``). Files that hold no weights (a lone optimiser state, a
    scheduler) are left out; damaged and refused ones are not, so that opening them reports why.

    Args:
        path: a file or a directory that is one checkpoint, returned as it is, or a run directory. Of a run, files in
            it and directories in it that are one checkpoint count; a run that is a checkpoint itself, as a Trainer
            leaves it at the end, comes among them.
        include: a pattern that the names must match, such as ``"epoch_*.safetensors"``; it replaces the
            usual suffixes.
        exclude: files that are no checkpoints although they look like one, such as a probe.
        note: told in a sentence each what was left out that looked like a checkpoint: what cannot be scanned, and a
            copy of another one, unless the pattern names it.
        refuse: told of each link that leaves the directory, which is not read; by default that is raised.

    Raises:
        InputError: the path is missing or unreadable, the directory holds no checkpoint, the shards of DeepSpeed
            ZeRO, none of which is a network, or nothing but links that leave it.
        UsageError: the pattern is not one, or leaves the directory.
    """
    if path.is_file():
        return (path,)
    left_out = {os.path.realpath(other) for other in exclude}  # also of links in a circle
    own = include is None and is_checkpoint_directory(path)
    entries = [entry for entry in _entries(path, include) if os.path.realpath(entry) not in left_out]
    inside = [entry for entry in entries if is_inside(path, entry)]
    leaving = [entry for entry in entries if entry not in set(inside)]
    outside = [entry for entry in leaving if _may_be_one(entry, include is not None, own)]
    candidates = _without_links([entry for entry in inside if _is_candidate(entry, include is not None, own)])
    if any(is_zero_shard(entry) for entry in candidates):
        raise zero_refusal(path)
    candidates += [path] if own else []
    siblings = {sibling_of(file) for file in candidates}
    known = [(file, _progress(file)) for file in candidates if file not in siblings]
    found = [(file, progress) for file, progress in known if progress is not None]
    if outside and not found:
        raise _escape(min(outside))
    for entry in sorted(outside):
        refuse(_escape(entry))
    if not found:
        raise foreign(path) or _foreign_within(inside) or _nothing(path, include)
    odd = [file for file, progress in known if progress is None]
    odd += (
        [] if include else [entry for entry in inside if entry not in candidates and _looks_like_one(entry)]
    )
    if odd:
        names = ", ".join(file.name for file in sorted(odd)[:_NAMED]) + (", …" if len(odd) > _NAMED else "")
        note(f"{path}: left out, unfinished, without weights or of another kind: {names}")
    copies = {} if include else dict(find_copies(found))
    for file, original in sorted(copies.items()):
        note(f"{file} is left out: it holds the weights of {original.name}")
    return _in_order([one for one in found if one[0] not in copies])


def _foreign_within(entries: list[Path]) -> InputError | None:
    """Return the refusal of the first folder that another framework wrote, as DeepSpeed's `global_step10`."""
    folders = (entry for entry in sorted(entries) if entry.is_dir() and not entry.is_symlink())
    return next(filter(None, map(foreign, folders)), None)


def _nothing(path: Path, include: str | None) -> InputError:
    pattern = f" matching {include}" if include else ""
    return InputError(path, f"holds no checkpoint file{pattern}", "name a checkpoint, or check the directory")


def _entries(directory: Path, include: str | None) -> list[Path]:
    try:
        return list(directory.iterdir() if include is None else directory.glob(include))
    except FileNotFoundError as error:
        raise InputError(directory, "does not exist", "check the path") from error
    except OSError as error:
        raise unreadable(directory, error) from error
    except (ValueError, NotImplementedError, IndexError) as error:
        raise UsageError(
            "include", f"{include!r} is not a pattern of names in the run directory", "mend it"
        ) from error


def _is_candidate(entry: Path, named: bool, own: bool) -> bool:
    """Return whether an entry of a directory may be a checkpoint.

    Args:
        entry: a file or directory in it.
        named: whether the user's pattern fits it, so that its suffix does not matter.
        own: whether the directory is one checkpoint itself, so that files in it are its parts.
    """
    if entry.name.startswith(".") or _LEFTOVERS.fullmatch(entry.name):
        return False
    if entry.is_dir():
        return is_checkpoint_directory(entry)
    return entry.is_file() and not own and (named or _has_weights_name(entry))


def _may_be_one(entry: Path, named: bool, own: bool) -> bool:
    """Return whether a link out of the directory is meant as a checkpoint, by its name; where it leads is not read.

    Args:
        entry: the link.
        named: whether the user's pattern fits it.
        own: whether the directory is one checkpoint itself.
    """
    if entry.name.startswith(".") or _LEFTOVERS.fullmatch(entry.name):
        return False
    suffix = entry.suffix.lower()
    is_file = suffix in _SUFFIXES or suffix == ".zip"
    return named or (is_file and not own) or (not is_file and from_name(entry.name) != Progress())


def _has_weights_name(file: Path) -> bool:
    # a zip may hold anything: only agents are taken, and the rest is no business of ours
    return file.suffix.lower() in _SUFFIXES or (file.suffix.lower() == ".zip" and is_agent(file))


def _looks_like_one(entry: Path) -> bool:
    """Return whether a user may have meant this entry to be scanned, although it cannot be."""
    if entry.name.startswith("."):
        return False
    if entry.is_dir():
        unfinished = _UNFINISHED_FOLDER.fullmatch(entry.name) or next(entry.glob("*.distcp"), None)
        return not entry.is_symlink() and (unfinished is not None or foreign(entry) is not None)
    return entry.suffix.lower() in _FOREIGN_SUFFIXES or _UNFINISHED.search(entry.name) is not None


def _without_links(files: list[Path]) -> list[Path]:
    """Leave out a link to another checkpoint of the run, such as ``last.ckpt``, which would count it twice."""
    real = {file.resolve() for file in files if not file.is_symlink()}
    return [file for file in files if not file.is_symlink() or file.resolve() not in real]


def _escape(file: Path) -> InputError:
    return InputError(
        file, "is a link or pattern that leaves the run directory", "give the file itself as PATH"
    )


def _progress(file: Path) -> Progress | None:
    """Return where in training a file was written; ``None`` where it holds no weights."""
    try:
        seen = glance(file)
    except NoWeightsError:
        return None
    except InputError:
        return from_name(file.name if file.is_dir() else file.stem)
    return Progress(seen.step, seen.epoch)


def _in_order(found: list[tuple[Path, Progress]]) -> tuple[Path, ...]:
    with_step = sum(progress.step is not None for _, progress in found)
    with_epoch = sum(progress.epoch is not None for _, progress in found)
    by_step = with_step >= with_epoch

    def rank(entry: tuple[Path, Progress]) -> tuple[bool, int, int, list[tuple[int, str]], str]:
        file, progress = entry
        first, second = (progress.step, progress.epoch) if by_step else (progress.epoch, progress.step)
        return first is None, first or 0, second or 0, _natural(file.name), file.name

    return tuple(file for file, _ in sorted(found, key=rank))


def _natural(name: str) -> list[tuple[int, str]]:
    """Split a name so that its numbers are compared as numbers."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d{1,18})", name.lower())
        if part
    ]
