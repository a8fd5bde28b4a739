"""The data that a model is measured on: read, checked, and identified by a hash.

Files are read as arrays only; nothing in them is executed. What is wrong with the data is said here, before
any pass.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from nndiag.config.callables import names_code
from nndiag.config.suggest import suggest
from nndiag.errors import InputError, UsageError, printable
from nndiag.probe.from_code import read_callable
from nndiag.probe.from_file import READERS
from nndiag.probe.language import from_columns, read_text, with_targets
from nndiag.probe.named import Named, named_tensors
from nndiag.probe.random_data import PREFIX, random_samples
from nndiag.probe.tables import SUFFIXES, read_table
from nndiag.probe.takes import NOTHING_KNOWN, Takes

TEXTS = (".txt",)
_NOISE = "probe: inputs are random numbers and no data; nothing that rests on them counts as an error"


@dataclass(frozen=True)
class Data:
    """Probe samples.

    ``inputs`` are the model's positional inputs and ``targets`` the loss's, each with samples along its first
    axis, in the types they were saved in. ``names`` are those under which the model takes the inputs, none where it
    takes them by position. ``sha256`` is of the file, or of the tensors themselves where they are made from it.
    ``notes`` are sentences for stderr. ``random`` says that they are noise and no data.
    """

    inputs: tuple[Tensor, ...] = field(repr=False)
    targets: Tensor | None = field(repr=False)
    sha256: str | None
    source: str
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    random: bool = False

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.inputs[0])


def load_data(
    spec: str,
    folder: Path,
    limit: int | None = None,
    seed: int = 0,
    *,
    option: str = "--data",
    takes: Takes = NOTHING_KNOWN,
) -> Data:
    """Load a probe.

    Args:
        spec: a ``.safetensors``, ``.npz`` or ``.pt`` file that holds ``x`` (or ``x0``, ``x1``, …) and
            optionally ``y``; a ``.parquet``, ``.jsonl`` or ``.arrow`` file, or a folder that the datasets library
            saved, with such columns; a ``.txt`` file for a language model; ``random:SHAPE``; or
            ``file.py:callable`` or ``pkg.mod:callable`` that returns tensors ``x`` or
            ``(x, y)``, or an iterable of such batches, such as a DataLoader. Whether a callable may run is
            the caller's to decide.
        folder: what a relative path counts from.
        limit: how many samples to keep, from the first; no more batches than that takes are drawn.
        seed: seeds torch, numpy and ``random`` while a callable runs; their states are put back.
        option: where the spec was given, for messages.
        takes: what the model takes: names other than ``x`` that inputs may have.

    Raises:
        UsageError: the spec is malformed or names no callable, or ``limit`` is below 1.
        InputError: the file is missing, damaged or refused, the callable fails, or the arrays cannot serve as
            a probe.
    """
    if limit is not None and limit < 1:
        raise UsageError("--limit", f"is {limit}", "give at least 1")
    arrays, digest, said = _read(spec, folder, limit, seed, option, takes)
    arrays = _cut(with_targets(arrays, seed, takes), limit)
    _check(arrays, spec)
    return Data(
        arrays.inputs,
        arrays.targets,
        digest or _tensor_hash(arrays),
        spec,
        tuple(note for note in (*said, *_notes(arrays)) if note),
        arrays.names,
        spec.startswith(PREFIX),
    )


def _read(
    spec: str, folder: Path, limit: int | None, seed: int, option: str, takes: Takes
) -> tuple[Named, str | None, tuple[str, ...]]:
    """Return the arrays that a spec means, the hash of the file where it is one, and notes."""
    if spec.startswith(PREFIX):
        return random_samples(spec, limit, seed, takes), None, (_NOISE,)
    path = folder / spec
    suffix = path.suffix.lower()
    reader = READERS.get(suffix)
    if reader is not None:
        _require(path)
        arrays = named_tensors(reader(path), spec, takes)
        with path.open("rb") as stream:
            return arrays, hashlib.file_digest(stream, "sha256").hexdigest(), ()
    if suffix in TEXTS:
        _require(path)
        arrays, note = read_text(path, limit, seed, takes)
        return arrays, None, (printable(note),)
    if suffix in SUFFIXES or os.path.isdir(path):
        if not os.path.isdir(path):
            _require(path)
        columns = read_table(path, limit)
        found = from_columns(columns, seed, takes)
        return named_tensors(columns, spec, takes) if found is None else found, None, ()
    if names_code(spec):
        return read_callable(spec, folder, limit, seed, option, takes), None, ()
    known = ", ".join([*READERS, *TEXTS, *SUFFIXES])
    raise UsageError(
        f"{option} {spec}", "is no kind of probe that is known", f"give {known}, a folder or file.py:callable"
    )


def _require(path: Path) -> None:
    """Say which file there is where this one is not."""
    if not os.path.isfile(path):  # a name may also be impossible
        near = [other.name for other in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        do = suggest(path.name, near) if near else "check the path; it counts from where the spec stands"
        raise InputError(path, "there is no such file", do)


def _cut(arrays: Named, limit: int | None) -> Named:
    """Return the first ``limit`` samples; arrays without a first axis are left for the check to find."""
    if limit is None:
        return arrays
    cut = {name: tensor[:limit] if tensor.dim() else tensor for name, tensor in arrays.tensors.items()}
    return replace(arrays, tensors=cut)


def _check(arrays: Named, source: str) -> None:
    """Refuse what cannot be a probe: scalars, no samples, different numbers of them, values that are not
    finite.
    """
    for name, tensor in arrays.tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InputError(source, f"{name} is not a dense array", "save it as a plain dense array")
        if tensor.dim() == 0:
            raise InputError(
                source, f"{name} is a single number", "save one row a sample, samples along the first axis"
            )
    lengths = {name: len(tensor) for name, tensor in arrays.tensors.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise InputError(
            source, f"the numbers of samples differ: {said}", "give every array one row a sample"
        )
    if not arrays.inputs[0].numel():
        raise InputError(source, "holds no samples", "give at least one")
    for name, tensor in arrays.tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            # Types of one byte know no isfinite.
            plain = tensor if tensor.element_size() > 1 else tensor.float()
            bad = tensor.numel() - int(torch.isfinite(plain).sum())
            if bad:
                values = "1 value that is" if bad == 1 else f"{bad:,} values that are"
                raise InputError(
                    source,
                    f"{name} holds {values} not finite",
                    "leave those samples out or fill the values in",
                )


def _notes(arrays: Named) -> tuple[str, ...]:
    notes = [
        f"probe: {name} holds whole numbers 0 to 255 (uint8); scale them if training did"
        for name, tensor in arrays.tensors.items()
        if tensor.dtype == torch.uint8 and name != "y"
    ]
    if arrays.left_out:
        notes.append(f"probe: {arrays.left_out} not used")
    return tuple(printable(note) for note in notes)


def _tensor_hash(arrays: Named) -> str:
    """Return the hash of the tensors' names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in arrays.tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.contiguous()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    return plain.view(torch.uint8).numpy().tobytes()
