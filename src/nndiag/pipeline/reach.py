"""How deep the inputs allow a scan to look, and what to add to look deeper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from nndiag.config.toml_file import RUN_FILE
from nndiag.errors import UsageError, printable
from nndiag.pipeline.inputs import Inputs
from nndiag.pipeline.survey import Survey, shown
from nndiag.records.level import Level
from nndiag.rules import RULES

_MODEL, _DATA = "--model file.py:callable", "--data FILE"
_LOSS = "--loss cross_entropy (or mse, nll, bce_with_logits)"


@dataclass(frozen=True)
class Reach:
    """The deepest level that is possible; for the next one, what is missing, the flag that gives it, and what
    is gained."""

    level: Level
    missing: str = ""
    flag: str = ""
    gain: str = ""


def reach_of(inputs: Inputs) -> Reach:
    """Return how deep these inputs allow a scan to look."""
    if inputs.model is None:
        after = "" if inputs.probe is not None else f" and {_DATA}"
        gain = "what the nodes do, and which of them are dead"
        return Reach(Level.WEIGHTS, "the model", f"{_MODEL}{after}", gain)
    if inputs.probe is None:
        gain = "activations, and with y in the data gradients and curvature"
        return Reach(Level.WEIGHTS, "data", _DATA, gain)
    if inputs.probe.loss is None:
        return Reach(Level.ACTIVATIONS, "a loss", _LOSS, "influence and curvature")
    if inputs.probe.loss.curvature_needs_targets and not inputs.probe.has_targets:
        return Reach(Level.GRADIENTS, "targets for this loss", "targets y to the data", "curvature")
    return Reach(Level.CURVATURE)


def chosen_level(reach: Reach, wanted: Level | None) -> Level:
    """Return the level wanted, or the deepest that is possible.

    Raises:
        UsageError: the one wanted needs more than was given.
    """
    if wanted is not None and wanted > reach.level:
        raise UsageError(f"--level {wanted.label}", f"it needs {reach.missing}", f"add {reach.flag}")
    return reach.level if wanted is None else wanted


def require_certificate(inputs: Inputs, reach: Reach, level: Level) -> None:
    """Make sure that a certificate can be made of these inputs.

    Raises:
        UsageError: it cannot, for want of the curvature level or of targets.
    """
    if reach.level < Level.CURVATURE:
        raise UsageError("--certificate", f"it needs {reach.missing}", f"add {reach.flag}")
    if level < Level.CURVATURE:
        why = "it needs the curvature level"
        raise UsageError("--certificate", why, f"leave out --level {level.label}")
    if inputs.probe is None or not inputs.probe.has_targets:
        raise UsageError("--certificate", "it needs targets", "add targets y to the data")


def require_trials(inputs: Inputs, level: Level) -> None:
    """Make sure that actions can be tried on these inputs.

    Raises:
        UsageError: they cannot, for want of a model or data, or because only the weights are to be looked at.
    """
    if inputs.model is None or inputs.probe is None:
        missing = ("the model", _MODEL) if inputs.model is None else ("data", _DATA)
        raise UsageError("--verify", f"it needs {missing[0]}", f"add {missing[1]}")
    if level < Level.ACTIVATIONS:
        raise UsageError("--verify", "it needs more than the weights", f"leave out --level {level.label}")


def not_looked_for(codes: Iterable[str], level: Level, certificate: bool) -> Iterator[str]:
    """Yield a sentence for every code, or prefix of codes, of which a scan cannot find one.

    Args:
        codes: those that are selected.
        level: how deep is looked.
        certificate: whether the whole model is certified.
    """
    for code in codes:
        needs = [(r.level, r.option or "") for r in RULES if r.code.startswith(code) and r.level is not None]
        if not needs or any(needed <= level and (certificate or not option) for needed, option in needs):
            continue
        needed, option = min(needs)
        asked = f" and {option}" if option and not certificate else ""
        yield f"--select {code}: it is not looked for, as it needs the {needed.label} level{asked}"


def hints(reach: Reach, level: Level, found: Callable[[], Survey | None]) -> tuple[str, ...]:
    """Return sentences that name the flags that get more, where there is more to get.

    Args:
        reach: how deep the inputs allow to look.
        level: how deep was looked.
        found: what lies with the checkpoints; asked for only where the flags depend on it.
    """
    if level < reach.level:
        return (f"leave out --level {level.label} to look as deep as {reach.level.label}",)
    if not reach.flag:
        return ()
    seen = found() if reach.missing in ("the model", "data") else None
    if seen is None:
        return (f"add {reach.flag} to see {reach.gain}",)
    return tuple(map(printable, _for_these_files(reach, seen)))


def _for_these_files(reach: Reach, seen: Survey) -> Iterator[str]:
    """Yield the flags that get the next level of these very checkpoints."""
    data = f"--data {shown(seen.data)}" if seen.data is not None else _DATA
    needs_data = _DATA in reach.flag
    if reach.missing == "data" or (seen.has_program and needs_data):
        yield f"add {data} to see {reach.gain}"
    elif seen.hugging_face is not None:
        flags = f"--model hf {data}" if needs_data else "--model hf"
        yield f"add {flags} to see {reach.gain}; config.json describes a {seen.hugging_face.architecture}"
    else:
        yield f"add {_MODEL}{f' and {data}' if needs_data else ''} to see {reach.gain}"
        if seen.chains and not (seen.folder / RUN_FILE).exists():
            yield (
                f"or run nndiag init {shown(seen.path)}: the weights fit Linear layers {seen.chains[0].widths}, "
                "which it writes into an nndiag.toml, activations guessed"
            )
    if needs_data and seen.data is None:
        yield f"without data, {_noise(seen)} shows what the network does with random numbers"


def _noise(seen: Survey) -> str:
    """Return the random probe that such a network takes."""
    config = seen.hugging_face
    if config is not None:
        size, channels = config.values.get("image_size"), config.values.get("num_channels", 3)
        if isinstance(size, int) and isinstance(channels, int):
            return f"--data random:{channels}x{size}x{size}"
        longest = [config.values.get(key) for key in ("max_position_embeddings", "n_positions")]
        return (
            f"--data random:tokens:{min([16, *(one for one in longest if isinstance(one, int) and one > 0)])}"
        )
    return f"--data random:{seen.chains[0].inputs}" if seen.chains else "--data random:SHAPE"
