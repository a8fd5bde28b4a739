"""The usual loaders in a process of their own, where what they do would end or exhaust this one."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

GIB = 1 << 30


class Did(NamedTuple):
    """How a call ended: the signal that killed it, or the error that it raised, or the value that it returned."""

    signal: int
    raised: str
    value: object


def in_child(call: Callable[[], object], memory: int = GIB) -> Did:
    """Run a call in a forked process that may take so many more bytes.

    A new interpreter would import torch again. The call must not compute on several threads, which the fork lacks.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of threads beside a fork
        child = os.fork()
    if not child:
        os.write(writing, json.dumps(_called(call, memory)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    raised, value = json.loads(said) if said else ("", None)
    return Did(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, raised, value)


def _called(call: Callable[[], object], memory: int) -> tuple[str, object]:
    faulthandler.disable()  # a signal is what is looked for
    limit = _addressed() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        return "", call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:2000], None


def _addressed() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
