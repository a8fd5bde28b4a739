"""The machine and the versions that a run's figures belong to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import nndiag
from benchmarks.setting import Setting

PEERS = ("curvlinops-for-pytorch", "pyhessian")


def heading(setting: Setting, command: str) -> list[str]:
    """Return the head of the page: command, machine, versions, and what a unit is."""
    peers = ", ".join(f"{name} {installed(name)}" for name in PEERS)
    machine = processor()
    if setting.device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(setting.device)} beside {machine}"
    lines = [
        "# Performance",
        "",
        f"`{command}` on {machine}, {torch.get_num_threads()} threads (OMP_WAIT_POLICY "
        f"{os.environ.get('OMP_WAIT_POLICY', 'not set')}), torch {torch.__version__}, nndiag "
        f"{nndiag.__version__}, Python {platform.python_version()}; {peers}.",
        "",
        "A unit is one plain forward and backward pass over the same probe, timed in the same process, in turn with "
        f"what is measured in it. Medians of {setting.repeats} runs unless said otherwise. Every network is trained "
        "on a problem of ten classes first (`benchmarks/problems.py`); the loss is cross-entropy.",
        "",
    ]
    if setting.quick:
        lines += [
            "**A quick run on small networks: it shows that the tables work, its figures mean nothing.**",
            "",
        ]
    return lines


def installed(package: str) -> str:
    """Return a package's version, or that it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
