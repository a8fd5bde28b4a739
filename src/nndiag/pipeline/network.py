"""The network of a scan: from ``--model``, from the run's or the user's file, or from what lies with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from nndiag.checkpoint import Checkpoint
from nndiag.checkpoint.huggingface import is_adapter
from nndiag.checkpoint.opening import glance
from nndiag.checkpoint.pt2 import is_pt2
from nndiag.config.record import RunConfig
from nndiag.errors import InputError, ModelError, UsageError
from nndiag.model.calling import argument_names, call_by_names
from nndiag.model.exported import load_exported
from nndiag.model.factory import build_model
from nndiag.model.fit import fit
from nndiag.model.from_config import build_from_config
from nndiag.model.hf import build_hf
from nndiag.model.hf_config import find_config, require_readable
from nndiag.model.timm_model import PREFIX as TIMM
from nndiag.model.timm_model import build_timm
from nndiag.pipeline.settings import ScanSettings
from nndiag.probe.data import Data
from nndiag.probe.takes import Takes
from nndiag.replay.layers import find_layers

HF = "hf"


@dataclass(frozen=True)
class Network:
    """The module, the name of the loss it was trained with where its class says so, and the folder that its tokenizer
    would lie in.
    """

    module: nn.Module
    folder: Path
    loss: str | None = None


def network(
    config: RunConfig,
    settings: ScanSettings,
    files: Sequence[Path],
    measured: bool,
    note: Callable[[str], None],
) -> Network | None:
    """Build the network, or return ``None`` where none is named.

    Args:
        config: the run's and the user's files.
        settings: options; they win.
        files: the checkpoints, in training order.
        measured: whether there is data and a level to measure it at: only then a ``config.json`` or an exported
            program is taken that nobody asked for.
        note: told of what was taken from the checkpoint.

    Raises:
        UsageError: options or configuration are wrong.
        InputError, ModelError: what is named is refused, or cannot be built.
    """
    last = files[-1]
    folder = last if last.is_dir() else last.parent
    spec = settings.model if settings.model is not None else config.model.factory
    unnamed = spec is None and config.model.sequential is None
    if unnamed and measured and settings.trust and _is_exported(last):
        return Network(load_exported(last), folder)
    if spec == HF or (unnamed and measured and find_config(last)):
        found = _from_config_json(files, settings)
    elif unnamed and measured and is_adapter(folder):
        do = "save model.merge_and_unload() of peft and give that, or give --model file.py:callable"
        raise InputError(last, "is an adapter alone, without the network that it changes", do)
    elif spec is not None and spec.startswith(TIMM):
        found = Network(build_timm(spec, _with_arguments(config, settings).model.kwargs), folder)
    elif settings.model is not None:
        offered = _offered(last)
        built = build_model(settings.model, Path.cwd(), settings.model_args, offered=offered, note=note)
        found = Network(built, folder)
    else:
        offered = _offered(last) if config.model.factory is not None else {}
        completed = _with_arguments(config, settings)
        module = build_from_config(completed, settings.trust, offered, note, _most_numbers(files))
        if module is None:
            return None
        found = Network(module, folder)
    if not find_layers(found.module):
        raise ModelError(
            "model", "it has no parameters, and so no nodes",
            "leave --model out to look at its weights",
        )  # fmt: skip
    return found


def takes_of(found: Network, loss: str | None, block: int | None) -> Takes:
    """Return what a network takes, for the reading of its data."""
    module, said = found.module, getattr(found.module, "config", None)
    tables = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
    return Takes(
        names=argument_names(module),
        main=_text(getattr(module, "main_input_name", None)) if said is not None else None,
        vocabulary=_number(getattr(said, "vocab_size", None)) or (tables[0] if tables else None),
        longest=_number(getattr(said, "max_position_embeddings", None)),
        tokenizer=found.folder,
        loss=loss or found.loss,
        block=block,
    )


def give_by_name(module: nn.Module, takes: Takes, names: Sequence[str], count: int) -> None:
    """Let the network be called with ``count`` inputs by position.

    Args:
        module: the network.
        takes: what it takes.
        names: the inputs' own names; none where they are ``x``, or ``x0``, ``x1``, ….
        count: how many there are.

    Raises:
        UsageError: a Hugging Face model is given several inputs that do not say which they are.
    """
    if not names and takes.main is not None:
        names = (takes.main, "attention_mask")[:count]
        if count > len(names):
            why = f"it holds {count} inputs by number"
            raise UsageError("probe", why, f"name them as the model does: {', '.join(takes.names[:6])}")
    if names:
        call_by_names(module, names)


def with_decoder_inputs(module: nn.Module, data: Data) -> Data:
    """Return the data with what a decoder sees of its own output while it is trained, where only the labels say it."""
    shift = getattr(module, "prepare_decoder_input_ids_from_labels", None)
    is_pair = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    name = "decoder_input_ids"
    if not (is_pair and callable(shift)) or data.targets is None or not data.names or name in data.names:
        return data
    return replace(data, inputs=(*data.inputs, shift(labels=data.targets)), names=(*data.names, name))


def _is_exported(last: Path) -> bool:
    """Whether a checkpoint is an exported program; one that cannot be read is said to be none until it is opened."""
    try:
        return is_pt2(last)
    except InputError:
        return False


def _from_config_json(files: Sequence[Path], settings: ScanSettings) -> Network:
    file = find_config(files[-1])
    if file is None:
        require_readable(files[-1])
        why = f"there is no config.json of a Hugging Face model with {files[-1]}"
        raise UsageError("--model hf", why, "give --model file.py:callable")
    if settings.model_args:
        raise UsageError("--model-arg", "config.json says everything about the model", "leave it out")
    seen = next(filter(None, map(_glanced, reversed(files))), None)

    def check(empty: nn.Module) -> None:
        if seen is None:
            return
        try:
            fit(empty, seen.places, settings.weights_key, settings.strip_prefix)
        except ModelError as error:
            do = f"correct {file}, which describes another network, or give --model file.py:callable"
            raise ModelError(f"{seen.path}, {error.what}", error.why, do) from error

    built = build_hf(file, check)
    return Network(built.module, file.parent, built.loss)


def _offered(last: Path) -> Mapping[str, object]:
    """Return the hyper-parameters that a checkpoint holds, plain values all; none where it cannot be read yet."""
    seen = _glanced(last)
    return {} if seen is None else seen.hyper_parameters


def _glanced(path: Path) -> Checkpoint | None:
    """Return what a checkpoint holds, ``None`` where it cannot be read: that is for its opening to say."""
    try:
        return glance(path)
    except InputError:
        return None


def _most_numbers(files: Sequence[Path]) -> int:
    """Return more numbers than the largest checkpoint can hold: a network with more cannot fit any of them."""
    return 16 * max(sum(part.stat().st_size for part in _parts(file)) for file in files) + 2**20


def _parts(file: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint; an index stands for those beside it."""
    folder = file.parent if file.suffix == ".json" else file
    return (part for part in folder.rglob("*") if part.is_file()) if folder.is_dir() else iter((file,))


def _with_arguments(config: RunConfig, settings: ScanSettings) -> RunConfig:
    """Return the configuration with ``--model-arg`` over the keywords of its factory."""
    arguments = settings.model_args
    if not arguments:
        return config
    if config.model.factory is None and settings.model is None:
        raise UsageError("--model-arg", "there is no factory to give it to", "add --model file.py:callable")
    kwargs = {**config.model.kwargs, **arguments}
    return replace(config, model=config.model.model_copy(update={"kwargs": kwargs}))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
