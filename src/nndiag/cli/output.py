"""Where reports go: files, and stdout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nndiag.errors import UsageError

if TYPE_CHECKING:
    from nndiag.records.report import Report


@dataclass(frozen=True)
class Target:
    """A file to write a report to, and the format."""

    format: str
    path: Path


def parse_targets(pairs: Sequence[str], formats: Iterable[str]) -> tuple[Target, ...]:
    """Return what ``--output FORMAT=FILE`` asks for, checked before there is anything to write.

    Raises:
        UsageError: a pair names no known format, or a file that cannot be made.
    """
    return tuple(_target(pair, tuple(formats)) for pair in pairs)


def _target(pair: str, formats: tuple[str, ...]) -> Target:
    what = f"--output {pair}"
    name, equals, file = pair.partition("=")
    known = ", ".join(formats)
    if not equals or not file:
        raise UsageError(what, "is not FORMAT=FILE", f"write e.g. json=report.json; the formats are {known}")
    if name not in formats:
        raise UsageError(what, f"there is no format {name}", f"use one of {known}")
    path = Path(file)
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(what, "is a directory", f"name a file in it: {name}={path / 'report'}")
    if not folder.is_dir():
        raise UsageError(what, f"there is no folder {folder}", "make it first, or choose another")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(what, "no permission to write there", "choose another file")
    return Target(name, path)


def refuse_overwriting(targets: Iterable[Target], inputs: Iterable[Path]) -> None:
    """Make sure that no report replaces what it is about.

    Raises:
        UsageError: a target is one of the inputs.
    """
    known = {path.resolve() for path in inputs}
    for target in targets:
        if target.path.resolve() in known:
            what = f"--output {target.format}={target.path}"
            raise UsageError(what, "is one of the scan's own inputs", "choose another file")


def write_reports(
    report: Report, targets: Iterable[Target], formats: Mapping[str, Callable[[Report], str | bytes]]
) -> None:
    """Write a report to files.

    Raises:
        InputError: a file cannot be written.
    """
    from nndiag.report.files import write_text

    for target in targets:
        write_text(target.path, formats[target.format](report))
