"""What a scan works on: configuration, checkpoints, model and probe, from flags and files.

Flags win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from nndiag.checkpoint import find_checkpoints
from nndiag.checkpoint.discovery import Refuse
from nndiag.config.callables import load_callable, names_code
from nndiag.config.load import load_run_config, load_user_config
from nndiag.config.record import RunConfig, merge
from nndiag.config.suggest import nearest
from nndiag.config.toml_file import RUN_FILE
from nndiag.config.trust import require_inside, require_trust
from nndiag.errors import InputError, UsageError
from nndiag.model.from_config import sequential_source
from nndiag.model.outputs import check_outputs
from nndiag.pipeline.network import give_by_name, network, takes_of, with_decoder_inputs
from nndiag.pipeline.settings import ScanSettings
from nndiag.pipeline.survey import called_probe
from nndiag.probe.data import Data, load_data
from nndiag.probe.loss import Loss, custom_loss, named_loss
from nndiag.probe.probe import Probe, cast_inputs
from nndiag.probe.takes import NOTHING_KNOWN, Takes
from nndiag.records.level import Level

Note = Callable[[str], None]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Inputs:
    """Everything but the weights.

    ``model`` and ``probe`` are ``None`` where they were not given. ``refused`` are the links in a run directory that
    leave it, which are not read.
    """

    config: RunConfig
    files: tuple[Path, ...]
    model: nn.Module | None
    probe: Probe | None
    refused: tuple[InputError, ...] = ()


def gather(paths: Sequence[Path], settings: ScanSettings, note: Note) -> Inputs:
    """Find and build what a scan works on.

    Raises:
        UsageError: options or configuration are wrong.
        InputError, ModelError: something is missing, refused or does not work.
    """
    _check_paths(paths)
    config = merge(load_user_config(Path.cwd()), load_run_config(paths[0]))
    settings = located(settings, config)
    _note_unread(paths, note)
    _check_device(settings.device)
    refused: list[InputError] = []
    files = _files(paths, config, settings, note, refused.append)
    return replace(_built(config, files, settings, note), refused=tuple(refused))


def _built(config: RunConfig, files: tuple[Path, ...], settings: ScanSettings, note: Note) -> Inputs:
    """Build the model and the probe beside the checkpoints."""
    has_data = settings.data is not None or config.probe.data is not None
    found = network(config, settings, files, has_data and settings.level != Level.WEIGHTS, note)
    if found is None and settings.level == Level.WEIGHTS:  # data that only a model could read are no error
        return Inputs(config, files, None, None)
    loss = settings.loss or config.probe.loss
    takes = (
        NOTHING_KNOWN
        if found is None
        else takes_of(found, loss, settings.block_size or config.probe.block_size)
    )
    data = _data(config, settings, takes)
    if found is None:  # the probe is not used, and nothing need be said of it
        return Inputs(
            config, files, None, None if data is None else _probe(data, config, settings, takes, _unsaid)
        )
    if data is not None:
        data = with_decoder_inputs(found.module, data)
        give_by_name(found.module, takes, data.names, len(data.inputs))
    if data is not None and isinstance(found.module, nn.Sequential) and config.model.sequential is not None:
        check_outputs(found.module, data.inputs[0], sequential_source(config))
    model = _of_type(found.module.to(settings.device), DTYPES[settings.dtype])
    return Inputs(config, files, model, None if data is None else _probe(data, config, settings, takes, note))


def _of_type(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a model with its real numbers in a type; ``nn.Module.to`` would make complex ones real."""
    model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)  # type: ignore[no-untyped-call]
    return model


def located(settings: ScanSettings, config: RunConfig) -> ScanSettings:
    """Return the settings with where the configuration says that the weights lie, unless options say it."""
    said = config.checkpoints
    return replace(
        settings,
        weights_key=settings.weights_key if settings.weights_key is not None else said.weights_key,
        strip_prefix=settings.strip_prefix if settings.strip_prefix is not None else said.strip_prefix,
    )


def _unsaid(sentence: str) -> None:
    """Keep a sentence to oneself."""


def _check_paths(paths: Sequence[Path]) -> None:
    if not paths:
        raise UsageError("PATH", "no checkpoint is given", "name a checkpoint or a run directory")
    for path in paths:
        try:
            known, near = path.exists(), _names_beside(path)
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
            raise InputError(path, why, "check the path and its permissions") from error
        if not known:
            close = nearest(path.name, near)
            do = f'did you mean "{close}"?' if close else "check the path"
            raise InputError(path, "there is no such file or directory", do)


def _names_beside(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def _note_unread(paths: Sequence[Path], note: Note) -> None:
    """Say that of several run directories only the first one's configuration counts."""
    folders = [path if path.is_dir() else path.parent for path in paths]
    read = (folders[0] / RUN_FILE).resolve()
    for folder in folders[1:]:
        other = folder / RUN_FILE
        if other.is_file() and other.resolve() != read:
            note(f"{other} is not read: the configuration beside the first PATH counts")


def _files(
    paths: Sequence[Path], config: RunConfig, settings: ScanSettings, note: Note, refuse: Refuse
) -> tuple[Path, ...]:
    exclude = [] if config.probe.data is None else [config.origin("probe.data").folder / config.probe.data]
    if settings.data is not None:
        exclude.append(Path(settings.data))
    include = config.checkpoints.include
    found: dict[Path, Path] = {}
    for path in paths:
        probes = called_probe(path) if include is None else []
        for file in find_checkpoints(path, include, [*exclude, *probes], note, refuse):
            if file.resolve() in found:
                note(f"{file} is given more than once; it is scanned once")
            found.setdefault(file.resolve(), file)
    files = tuple(found.values())
    if settings.every is not None:
        files = files[:: -settings.every][::-1]  # counted from the end: the last one is always there
    return files[-settings.last :] if settings.last is not None else files


def _data(config: RunConfig, settings: ScanSettings, takes: Takes) -> Data | None:
    limit = settings.limit if settings.limit is not None else config.probe.limit
    if settings.data is not None:
        return load_data(settings.data, Path.cwd(), limit, settings.seed, takes=takes)
    if config.probe.data is None:
        return None
    origin = config.origin("probe.data")
    if names_code(config.probe.data):
        require_trust(config, "probe.data", settings.trust)
    require_inside(config, "probe.data", settings.trust)
    option = f"{origin.source} [probe] data"
    return load_data(config.probe.data, origin.folder, limit, settings.seed, option=option, takes=takes)


def _probe(data: Data, config: RunConfig, settings: ScanSettings, takes: Takes, note: Note) -> Probe:
    for sentence in data.notes:
        note(sentence)
    device = torch.device(settings.device)
    targets = None if data.targets is None else data.targets.to(device)
    return Probe(
        inputs=cast_inputs(data.inputs, DTYPES[settings.dtype], device),
        targets=targets,
        loss=_loss(data, config, settings, takes, note),
        batch_size=settings.batch_size or config.probe.batch_size or 0,
        folds=settings.folds,
        sha256=data.sha256,
        random=data.random,
    )


def _loss(data: Data, config: RunConfig, settings: ScanSettings, takes: Takes, note: Note) -> Loss | None:
    if settings.loss is not None:
        return _loss_of(settings.loss, Path.cwd(), "--loss")
    if config.probe.loss is not None:
        if names_code(config.probe.loss):
            require_trust(config, "probe.loss", settings.trust)
        origin = config.origin("probe.loss")
        return _loss_of(config.probe.loss, origin.folder, f"{origin.source} [probe] loss")
    if takes.loss is not None:
        note(f"no --loss given: {takes.loss} taken, which such models are trained with")
        return named_loss(takes.loss)
    if data.targets is None:
        return None
    name = "mse" if data.targets.is_floating_point() else "cross_entropy"
    kind = "floating" if data.targets.is_floating_point() else "integer"
    note(f"no --loss given: {name} taken, since the targets are {kind} numbers")
    return named_loss(name)


def _loss_of(spec: str, folder: Path, option: str) -> Loss:
    if not names_code(spec):
        return named_loss(spec)
    return custom_loss(spec, load_callable(spec, folder, option, InputError))  # type: ignore[arg-type]


def _check_device(name: str) -> None:
    try:
        holds_numbers = torch.zeros(1, device=name).device.type != "meta"
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"--device {name}", f"it cannot be used ({why})", "use --device cpu") from error
    if not holds_numbers:
        raise UsageError(f"--device {name}", "it holds no numbers", "use --device cpu")
