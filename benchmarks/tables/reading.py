"""The weights level of a large file against reading and summing every tensor of it once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from benchmarks.markdown import rows, section
from benchmarks.reading import Reading
from benchmarks.setting import Setting
from benchmarks.tables.memory import mib

GIB = 2**30
SIDE = 4096
DISK, CACHE = "disk", "the system's cache"


def table(setting: Setting) -> list[str]:
    """Compare times and memory, with the file on disk and with the file in the system's cache."""
    layers = 4 if setting.quick else 64
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        write(file, layers)
        size, body = file.stat().st_size, []
        for place in (DISK, CACHE):
            setting.say(f"from {place}")
            taken: dict[str, list[Reading]] = {what: [] for what in NAMES}
            read("sum", file, place)  # the first one fills the cache, or is one too many
            for _ in range(setting.repeats):
                for what, found in taken.items():
                    found.append(read(what, file, place))
            unit = median(reading.seconds for reading in taken["sum"])
            for what, found in taken.items():
                seconds = median(reading.seconds for reading in found)
                most = max(reading.most for reading in found)
                more = most - min(reading.before for reading in found)
                body.append(
                    [place, NAMES[what], f"{seconds:.1f} s", f"{seconds / unit:.2f}", mib(most), mib(more)]
                )
    return [
        *section(
            "Reading",
            f"A safetensors file of {size / GIB:.1f} GiB: {layers} matrices of {SIDE} x {SIDE} float32, "
            f"{mib(4 * SIDE**2)} each. Every row is a fresh process; its start is not counted. A scan also computes "
            "the SHA-256 of the file, beside the measuring on a core of its own: it cannot take less time than that.",
        ),
        *rows(("file in", "what", "time", "against the sum", "peak resident", "above an idle process"), body),
    ]


NAMES = {
    "sum": "read and sum every tensor",
    "hash": "SHA-256 of the file alone",
    "scan": "`nndiag.scan`, level weights, with SHA-256",
}


def write(file: Path, layers: int) -> None:
    """Write matrices that are all different."""
    base = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / SIDE**0.5
    # each a fresh tensor, but few numbers drawn
    save_file({f"layers.{i}.weight": base.roll(i, dims=1) * (1 + i / 1000) for i in range(layers)}, file)


def read(what: str, file: Path, place: str) -> Reading:
    """Read the file in a process of its own."""
    if place == DISK:
        forget(file)
    command = [sys.executable, "-m", "benchmarks.reading", what, str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Reading(**json.loads(done.stdout))


def forget(file: Path) -> None:
    """Let the system drop the file from its cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
