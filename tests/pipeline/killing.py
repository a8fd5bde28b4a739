"""A program that scans a run again and again in children of its own, and kills them.

Prints as JSON how the children ended, which checkpoints each began to measure, and which were kept before. A child is a
fork, since importing torch anew twenty times would take a minute.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from nndiag.pipeline import ScanSettings, scan
from nndiag.pipeline import job as job_module
from nndiag.report import render_json

KILLS = 20


def main() -> None:
    run, folder, output = (Path(word) for word in sys.argv[1:4])
    torch.set_num_threads(1)
    moments = random.Random(5)
    rounds = [
        attempt(run, folder, output, (moments.randint(0, 2), moments.uniform(0.0, 0.05)))
        for _ in range(KILLS)
    ]
    rounds.append(attempt(run, folder, output, None))
    print(json.dumps(rounds))


def attempt(run: Path, folder: Path, output: Path, moment: tuple[int, float] | None) -> dict[str, object]:
    """Scan in a child that is killed so long after it began to measure its n-th checkpoint, or its work at all."""
    log = output.with_suffix(".log")
    log.write_text("")
    before = kept(folder)
    child = os.fork()
    if not child:
        try:
            scan_once(run, folder, output, log)
            os._exit(0)
        finally:
            os._exit(1)
    done, status = 0, 0
    if moment is not None:
        count, delay = moment
        while not done and len(log.read_text().split()) < count:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        time.sleep(delay)
        if not done:
            os.kill(child, signal.SIGKILL)
    if not done:
        _, status = os.waitpid(child, 0)
    return {"status": status, "kept": before, "measured": log.read_text().split()}


def scan_once(run: Path, folder: Path, output: Path, log: Path) -> None:
    original = job_module.Job._measured

    def logged(self, index, model, update):  # type: ignore[no-untyped-def]
        with log.open("a") as stream:
            stream.write(f"{self.inputs.files[index].name}\n")
        return original(self, index, model, update)

    job_module.Job._measured = logged  # type: ignore[method-assign]
    outcome = scan(run, ScanSettings(cache=str(folder)))
    output.write_text(render_json(outcome.report))


def kept(folder: Path) -> list[str]:
    """Return the names of the checkpoints that have an entry."""
    entries = (json.loads(file.read_text()) for file in folder.glob("*/*.json"))
    return [Path(json.loads(one["entry"])["diagnosis"]["checkpoint"]["path"]).name for one in entries]


if __name__ == "__main__":
    main()
