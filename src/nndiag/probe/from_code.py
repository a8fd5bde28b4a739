"""Samples from the user's own code: tensors, or an iterable of batches such as a DataLoader."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nndiag.config.callables import load_callable, running
from nndiag.errors import InputError
from nndiag.probe.named import Named, named_tensors
from nndiag.probe.takes import NOTHING_KNOWN, Takes

ROWS = 256
"""Samples a batch where a map-style dataset is returned without a loader."""
Array = Tensor | np.ndarray


def read_callable(
    spec: str, folder: Path, limit: int | None, seed: int, option: str, takes: Takes = NOTHING_KNOWN
) -> Named:
    """Call what ``spec`` names and return its samples, batches concatenated until there are ``limit``.

    Raises:
        UsageError: the spec names no callable.
        InputError: the code fails, or what it returns is no data.
    """
    what = f"{option} {spec}"
    with _seeded(seed):
        function = load_callable(spec, folder, option, InputError)
        with running(what, InputError):
            returned = function()
            if isinstance(returned, Array | Mapping | tuple):
                return _arrays(returned, what, takes)
            if isinstance(returned, Dataset) and not isinstance(returned, IterableDataset):
                returned = DataLoader(returned, batch_size=ROWS)
            if not isinstance(returned, Iterable):
                raise InputError(
                    what,
                    f"returned an object of type {type(returned).__name__}",
                    "return x, (x, y), or an iterable of such batches",
                )
            return _joined(returned, limit, what, takes)


def _arrays(batch: object, what: str, takes: Takes) -> Named:
    """Return the arrays of one batch: ``x``, ``(x,)``, ``(x, y)``, a mapping by name; ``x`` may be a sequence
    of inputs.
    """
    if isinstance(batch, Mapping):
        return named_tensors({str(name): value for name, value in batch.items()}, what, takes)
    parts = [batch] if isinstance(batch, Array) else batch
    if not isinstance(parts, list | tuple) or len(parts) not in (1, 2):
        shape = (
            f"{len(parts)} parts"
            if isinstance(parts, list | tuple)
            else f"an object of type {type(batch).__name__}"
        )
        raise InputError(what, f"a batch is {shape}", "give x, (x, y), ((x0, x1), y), or a dict with x and y")
    first = parts[0]
    inputs = (
        {f"x{i}": part for i, part in enumerate(first)} if isinstance(first, list | tuple) else {"x": first}
    )
    return named_tensors(inputs | ({"y": parts[1]} if len(parts) == 2 else {}), what)


def _joined(batches: Iterable[object], limit: int | None, what: str, takes: Takes) -> Named:
    """Return the batches one after another; no batch is drawn once there are ``limit`` samples."""
    drawn: list[Named] = []
    samples = 0
    for batch in batches:
        arrays = _arrays(batch, what, takes)
        if drawn and list(arrays.tensors) != list(drawn[0].tensors):
            held, first = ", ".join(arrays.tensors), ", ".join(drawn[0].tensors)
            raise InputError(
                what, f"a batch holds {held}, the first one {first}", "give every batch the same parts"
            )
        drawn.append(arrays)
        samples += len(arrays.inputs[0]) if arrays.inputs[0].dim() else 0
        if limit is not None and samples >= limit:
            break
    if not drawn:
        raise InputError(what, "holds no samples", "give at least one batch")
    joined = {
        name: _concatenated([part.tensors[name] for part in drawn], name, what) for name in drawn[0].tensors
    }
    return replace(drawn[0], tensors=joined)


def _concatenated(parts: list[Tensor], name: str, what: str) -> Tensor:
    if any(part.dim() == 0 for part in parts):
        raise InputError(
            what, f"{name} is a single number in a batch", "give batches with samples along the first axis"
        )
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        one, other = sorted(shapes)[:2]
        raise InputError(
            what, f"the samples of {name} differ in shape, {one} and {other}", "pad them to one length"
        )
    return torch.cat(parts)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for the time of a block and put them back as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
