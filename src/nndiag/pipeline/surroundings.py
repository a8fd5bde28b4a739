"""What a smaller checkpoint needs so that it loads: a new list of layers, a new configuration, or new sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from nndiag.config.tables import Table
from nndiag.config.toml_file import RUN_FILE
from nndiag.config.toml_text import toml_comment, toml_table
from nndiag.errors import InputError
from nndiag.model.hf_config import find_config
from nndiag.pipeline.cured import Cured
from nndiag.pipeline.job import Job
from nndiag.surgery.deploying import as_toml, smaller_sequential

CONFIG = "config.json"


@dataclass(frozen=True)
class Surroundings:
    """Files beside the new checkpoint and files inside it, by their names; ``said`` are sentences about them."""

    beside: Mapping[str, bytes] = field(default_factory=dict)
    inside: Mapping[str, bytes] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def is_from_config(job: Job) -> bool:
    """Whether the network of a job was built from the ``config.json`` that lies in the checkpoint."""
    model, last = job.inputs.model, job.inputs.files[-1]
    given = job.settings.model or job.inputs.config.model.factory or "hf"
    return (
        given == "hf"
        and job.inputs.config.model.sequential is None
        and hasattr(model, "config")
        and last.is_dir()
        and find_config(last) is not None
    )


def surroundings(job: Job, cured: Cured, target: Path) -> Surroundings:
    """Return what has to be written beside a smaller network; nothing where its sizes are the old ones.

    Raises:
        InputError: the configuration cannot be read.
    """
    if cured.widths is None:
        return Surroundings()
    if cured.config is not None:
        return _configured(job.inputs.files[-1] / CONFIG, cured.config)
    entries = job.inputs.config.model.sequential
    if entries is not None and isinstance(cured.module, nn.Sequential):
        return _sequential(as_toml(smaller_sequential(entries, cured.module)), job, target)
    name = f"{target.name}.widths.json"
    said = f"build the network as before, then nndiag.resize(model, {name!r}), then load the weights"
    text = json.dumps(cured.widths, indent=2, sort_keys=True) + "\n"
    return Surroundings({name: text.encode()}, said=(said,))


def _configured(file: Path, changes: Mapping[str, object]) -> Surroundings:
    try:
        known = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(file, f"cannot be read ({error})", "check the checkpoint") from error
    text = json.dumps({**known, **changes}, indent=2, ensure_ascii=True) + "\n"
    said = f"{CONFIG} of the new checkpoint has other sizes: {', '.join(sorted(changes))}"
    return Surroundings(inside={CONFIG: text.encode()}, said=(said,))


def _sequential(model: str, job: Job, target: Path) -> Surroundings:
    """Write the new list of layers where a scan finds it, or, where one lies there already, beside the checkpoint."""
    about = toml_comment(f"The network of {target.name}, which heal made smaller.")
    text = f"{about}\n{model}{_rest(job, target)}"
    taken = (target.absolute().parent / RUN_FILE).exists()
    name = f"{target.name}.toml" if taken else RUN_FILE
    said = (
        f"{RUN_FILE} beside it describes the larger network: the smaller one is in {name}; give the two a folder of "
        f"their own and call it {RUN_FILE}"
        if taken
        else f"{RUN_FILE} beside it has the new list of layers"
    )
    return Surroundings({name: text.encode()}, said=(said,))


def _rest(job: Job, target: Path) -> str:
    """Return the tables that say where the weights lie, what to measure on and the update rule, as far as they mean
    the same from the new place.
    """
    config = job.inputs.config
    tables = {
        "checkpoints": _given(config.checkpoints, "weights_key", "strip_prefix"),
        "probe": _given(config.probe, "loss", "limit", "batch_size", "block_size"),
        "optimizer": _given(config.optimizer, *type(config.optimizer).model_fields),
    }
    if ":" in (config.probe.loss or ""):  # code of the old folder
        del tables["probe"]["loss"]
    if config.probe.data is not None:
        data = (config.origin("probe.data").folder / config.probe.data).resolve()
        folder = target.absolute().parent.resolve()
        if data.is_relative_to(folder):
            tables["probe"] = {"data": data.relative_to(folder).as_posix()} | tables["probe"]
    return "".join(f"\n{toml_table(name, values)}" for name, values in tables.items() if values)


def _given(table: Table, *keys: str) -> dict[str, object]:
    """Return the keys that a table gives."""
    return {key: value for key in keys if (value := getattr(table, key)) is not None}
