"""The checkpoints of a run directory, in training order."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from nndiag.checkpoint.opening import glance
from nndiag.checkpoint.optimizers import sibling_of
from nndiag.checkpoint.progress import Progress, from_name
from nndiag.checkpoint.source import NoWeightsError, unreadable
from nndiag.errors import InputError, UsageError

_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th"})
# What trainers leave beside the weights; most of it is pickled code, so that its content cannot tell.
_LEFTOVERS = re.compile(r"(training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth)")


def find_checkpoints(
    path: Path, include: str | None = None, exclude: Collection[Path] = ()
) -> tuple[Path, ...]:
    """Return the checkpoint files under a path, in training order.

    The order is by step, else by epoch, as the files say or else their names; files that say neither come
    last, in natural order of their names (``ckpt_9`` before ``ckpt_10``). Files that hold no weights (a lone
    optimiser state, a scheduler) are left out; damaged and refused ones are not, so that opening them
    reports why.

    Args:
        path: a file, returned as it is, or a directory, searched without its subdirectories.
        include: a pattern that the names must match, such as ``"epoch_*.safetensors"``; it replaces the
            usual suffixes.
        exclude: files that are no checkpoints although they look like one, such as a probe.

    Raises:
        InputError: the path is missing or unreadable, the directory holds no checkpoint, or a file in it is
            a link that leaves it.
        UsageError: the pattern is not one, or leaves the directory.
    """
    if path.is_file():
        return (path,)
    left_out = {other.resolve() for other in exclude}
    candidates = [file for file in _candidates(path, include) if file.resolve() not in left_out]
    siblings = {sibling_of(file) for file in candidates}
    known = [(file, _progress(file)) for file in candidates if file not in siblings]
    found = [(file, progress) for file, progress in known if progress is not None]
    if not found:
        pattern = f" matching {include}" if include else ""
        raise InputError(
            path, f"holds no checkpoint file{pattern}", "name a checkpoint, or check the directory"
        )
    return _in_order(found)


def _candidates(directory: Path, include: str | None) -> list[Path]:
    try:
        files = list(directory.iterdir() if include is None else directory.glob(include))
    except FileNotFoundError as error:
        raise InputError(directory, "does not exist", "check the path") from error
    except OSError as error:
        raise unreadable(directory, error) from error
    except (ValueError, NotImplementedError, IndexError) as error:
        raise UsageError(
            "include", f"{include!r} is not a pattern of names in the run directory", "mend it"
        ) from error
    chosen = []
    for file in files:
        suffix_fits = include is not None or file.suffix.lower() in _SUFFIXES
        if (
            suffix_fits
            and not file.name.startswith(".")
            and not _LEFTOVERS.fullmatch(file.name)
            and file.is_file()
        ):
            _refuse_escape(directory, file)
            chosen.append(file)
    # A link to another checkpoint of the run, such as last.ckpt, would count it twice.
    real = {file.resolve() for file in chosen if not file.is_symlink()}
    return [file for file in chosen if not file.is_symlink() or file.resolve() not in real]


def _refuse_escape(directory: Path, file: Path) -> None:
    if not file.resolve().is_relative_to(directory.resolve()):
        raise InputError(
            file, "is a link or pattern that leaves the run directory", "give the file itself as PATH"
        )


def _progress(file: Path) -> Progress | None:
    """Return where in training a file was written; ``None`` where it holds no weights."""
    try:
        seen = glance(file)
    except NoWeightsError:
        return None
    except InputError:
        return from_name(file.stem)
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
