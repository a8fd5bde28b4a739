"""How much memory a measurement may take: what is free, and what tensors and graphs hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nndiag.measures.plan import Plan

FREE_SHARE = 0.5
"""Without a budget, so much of what is free is taken."""
UNKNOWN = 4 * 2**30
"""What counts as free where nobody says."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def budget_of(plan: Plan, device: torch.device) -> int:
    """Return the budget in bytes: the one asked for, else a share of what is free where the model is."""
    return plan.memory_budget if plan.memory_budget is not None else int(FREE_SHARE * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a device; of main memory the least of what the machine and its group have."""
    if device.type == "cuda":
        # what torch holds without using it is free for tensors too
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    found = [free for free in (_machine_free(), _group_free()) if free is not None]
    return min(found, default=UNKNOWN)


def _machine_free() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _group_free() -> int | None:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def storage_bytes(tensors: Iterable[Tensor], besides: Iterable[Tensor] = ()) -> int:
    """Return what tensors hold, each storage counted once, and none that the others hold."""
    known = {t.untyped_storage().data_ptr() for t in besides}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for place, size in found.items() if place not in known)


def graph_tensors(output: Tensor) -> Iterator[Tensor]:
    """Yield what autograd keeps to differentiate an output."""
    seen = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(before for before, _ in node.next_functions)
        for name in _saved_names(type(node)):
            try:
                saved = getattr(node, name)
            except RuntimeError:  # freed, or changed in place since
                continue
            yield from (
                t for t in (saved if isinstance(saved, tuple | list) else (saved,)) if isinstance(t, Tensor)
            )


@cache
def _saved_names(node: type) -> tuple[str, ...]:
    return tuple(name for name in dir(node) if name.startswith("_saved_") or name == "saved_tensors")
