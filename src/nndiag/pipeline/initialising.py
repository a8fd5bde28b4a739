"""``init``: an ``nndiag.toml`` for a directory, from what is found in it; what could not be known stands there as a
comment.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nndiag.checkpoint import Permission
from nndiag.config.tables import Tables
from nndiag.config.toml_file import RUN_FILE
from nndiag.config.toml_text import toml_comment, toml_value
from nndiag.errors import InputError, UsageError
from nndiag.model.chain import ACTIVATION, Chain
from nndiag.pipeline.survey import Survey, shown, survey

MOST_NAMES = 12
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Draft:
    """The file to write, its text, and the command that is possible then."""

    path: Path
    text: str
    command: str


def draft(path: Path, force: bool = False, trust: bool = False) -> Draft:
    """Return the ``nndiag.toml`` that a run directory, or the folder of a checkpoint, suggests.

    Args:
        path: the directory or the checkpoint.
        force: whether a file that is there may be replaced.
        trust: whether checkpoints may be opened that are code: exported programs, pickled modules.

    Raises:
        UsageError: there is one, and ``force`` is false.
        InputError: there is no checkpoint.
    """
    if not path.exists():
        raise InputError(path, "there is no such file or directory", "check the path")
    target = (path if path.is_dir() else path.parent) / RUN_FILE
    if (target.exists() or target.is_symlink()) and not force:
        raise UsageError(target, "is there already", "add --force to write it anew")
    found = survey(path, Permission(trust))
    text = "\n".join(_lines(found)) + "\n"
    Tables.model_validate(tomllib.loads(text))
    return Draft(target, text, f"nndiag scan {shown(path)}{' --trust' if trust else ''}")


def _lines(found: Survey) -> Iterator[str]:
    files, form = found.files, found.checkpoint.format
    which = (
        files[0].name if len(files) == 1 else f"{len(files)} checkpoints, {files[0].name} to {files[-1].name}"
    )
    yield toml_comment(f"What nndiag init found: {which} ({form}).")
    yield from map(toml_comment, found.checkpoint.notes)
    yield ""
    yield from _model(found)
    yield ""
    yield from _checkpoints(found)
    yield "[probe]"
    yield from _data(found)
    yield from _loss(found)
    yield ""
    yield from _optimizer(found)


def _model(found: Survey) -> Iterator[str]:
    if found.hugging_face is not None:
        yield "[model]"
        yield toml_comment(f'config.json: {found.hugging_face.architecture}. Needs pip install "nndiag[hf]".')
        yield 'factory = "hf"'
        return
    if found.has_program:
        yield "# [model]: the exported program in the checkpoint. It is code, so that nndiag scan needs --trust."
        return
    if not found.chains:
        yield "# [model]: the weights fit no plain chain of layers. Name the code that builds the network:"
        yield "[model]"
        yield '# factory = "model.py:build"   # from a file in this directory, it runs with --trust alone'
        yield from _weights(found)
        return
    chain = found.chains[0]
    yield "[model]"
    yield "# The names and shapes of the weights fit this chain. Activations leave no weights: lines marked guess are"
    yield f"# guesses ({ACTIVATION} may be any other activation); correct them before believing what rests on them."
    yield "sequential = ["
    for place, layer in enumerate(chain.layers):
        yield f"  {toml_value(layer)},{'   # guess' if place in chain.guessed else ''}"
    yield "]"


def _weights(found: Survey) -> Iterator[str]:
    """Yield what a factory must fit: hyper-parameters that it may take, and weights, matrices and kernels first."""
    said = found.checkpoint.hyper_parameters
    if said:
        words = ", ".join(f"{name} = {value!r}"[:80] for name, value in list(said.items())[:MOST_NAMES])
        yield toml_comment(
            f"Hyper-parameters in the checkpoint go to a factory that takes them by name: {words}"
        )
    if len(found.checkpoint.places) > 1:
        keys = ", ".join(toml_value(place.key) for place in found.checkpoint.places[:MOST_NAMES])
        yield toml_comment(
            f"Weights lie in several places, of which weights_key under [checkpoints] names one: {keys}"
        )
    yield "# The weights, by name and shape:"
    shapes = sorted(found.shapes.items(), key=lambda entry: len(entry[1]) < 2)
    for name, shape in shapes[:MOST_NAMES]:
        yield toml_comment(f"  {name}: {'x'.join(map(str, shape)) or 'one number'}")
    if len(shapes) > MOST_NAMES:
        yield f"#   and {len(shapes) - MOST_NAMES} more"


def _checkpoints(found: Survey) -> Iterator[str]:
    chains = found.chains if found.hugging_face is None else ()
    pattern = _pattern([file.name for file in found.files])
    if len(chains) < 2 and pattern is None:
        return
    yield "[checkpoints]"
    if pattern is not None:
        yield f"include = {toml_value(pattern)}"
    if len(chains) > 1:
        yield toml_comment(f"The file holds {len(chains)} such networks; this one is the first.")
        if chains[0].place:
            yield f"weights_key = {toml_value(chains[0].place)}"
        yield f"strip_prefix = {toml_value(chains[0].prefix)}"
    yield ""


def _data(found: Survey) -> Iterator[str]:
    by_name = found.hugging_face is not None
    holds = f"{_width(found)}, and {'labels' if by_name else 'targets y'}"
    if found.data is None:
        yield f"# No file of data lies here. A probe is a few hundred held-out samples: {holds}."
        yield f'# data = "probe.{"parquet" if by_name else "npz"}"'
        return
    yield f"# Found by its name alone; it must hold {holds}."
    yield f"data = {toml_value(os.path.relpath(found.data.absolute(), found.folder.absolute()))}"


def _width(found: Survey) -> str:
    if found.hugging_face is not None:
        if "image_size" in found.hugging_face.values:
            return "pixel_values"
        tokens = (
            "input_ids and attention_mask" if "vocab_size" in found.hugging_face.values else "inputs by name"
        )
        return f"text, or {tokens}" if found.has_tokenizer else tokens
    chain = _only(found.chains)
    if chain is not None:
        return f"x with {chain.inputs} numbers a sample"
    first = next((shape for shape in found.shapes.values() if len(shape) > 1), ())
    if len(first) == 2:
        return f"x with perhaps {first[1]} numbers a sample"
    return f"x with perhaps {first[1]} channels" if len(first) > 2 else "x"


def _loss(found: Survey) -> Iterator[str]:
    if found.hugging_face is not None:
        if found.hugging_face_loss is None:
            yield '# loss = "cross_entropy"   # what it was trained with is not known'
        else:
            yield f'loss = "{found.hugging_face_loss}"   # what such models are trained with'
        return
    chain = _only(found.chains)
    if chain is None:
        yield '# loss = "cross_entropy"   # or mse, nll, bce_with_logits, causal_lm, masked_lm'
    elif chain.outputs > 1:
        yield f'loss = "cross_entropy"   # guess, from {chain.outputs} outputs; mse where they are no classes'
    else:
        yield 'loss = "mse"   # guess, from a single output; bce_with_logits for two classes'


def _optimizer(found: Survey) -> Iterator[str]:
    known = found.optimizer
    if known is None:
        yield "# No optimiser was saved. With its rule nndiag says which nodes its steps throw out:"
        yield "# [optimizer]"
        yield '# name = "adam"   # sgd, adam or adamw'
        yield "# lr = 1e-3"
        return
    said = [
        known.name or "a rule that is not known",
        *(f"lr {known.lr:g}" for _ in [0] if known.lr is not None),
    ]
    yield toml_comment(f"The optimiser is read from the checkpoints: {', '.join(said)}.")
    if known.name is None or known.lr is None:
        yield "# [optimizer]"
        yield '# name = "sgd"   # sgd, adam or adamw'
        yield "# lr = 1e-3"


def _pattern(names: Sequence[str]) -> str | None:
    """Return ``epoch_*.pt`` for files that differ in a number alone."""
    kinds = {re.sub(r"\d+", "*", name) for name in names}
    if len(names) < 2 or len(kinds) > 1 or not _PLAIN.fullmatch(names[0]):
        return None
    return kinds.pop()


def _only(chains: Sequence[Chain]) -> Chain | None:
    return chains[0] if chains else None
