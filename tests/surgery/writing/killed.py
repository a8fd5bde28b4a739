"""Writes a checkpoint again and again in children of this process, each killed one event later than the one before.

An event is whatever Python's audit hooks tell of the target's folder: opening, making, linking, renaming, removing. The
last child lives. Children are forked, so that torch is imported once.

    python killed.py FOLDER SOURCE...
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from nndiag.checkpoint import open_checkpoint
from nndiag.model.fit import fit
from nndiag.surgery.writing import write
from tests.surgery.writing.networks import network, pruned

_EVENTS = ("open", "os.", "tempfile.", "shutil.")


def main(source: Path, folder: Path) -> None:
    """Kill children at every event until one lives."""
    folder.mkdir()
    number, killed = 0, True
    while killed:
        number += 1
        place = folder / f"{number:03}"
        place.mkdir()
        child = os.fork()
        if not child:
            _run(source, place, number)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _run(source: Path, place: Path, last: int) -> None:
    model = network()
    opened = open_checkpoint(source)
    fitted = fit(model, opened.places)
    edits = pruned(model)
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event.startswith(_EVENTS) and any(str(place) in str(argument) for argument in arguments):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    write(opened, fitted, edits, place / ("new" + source.suffix), model=model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[2:]:
        main(Path(argument), Path(sys.argv[1], Path(argument).parent.name))
