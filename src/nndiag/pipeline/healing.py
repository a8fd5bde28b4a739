"""``heal``: examine a checkpoint, treat it, prove what that does, examine it again, and write a new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import nndiag
from nndiag.config.suggest import nearest
from nndiag.errors import UsageError
from nndiag.pipeline.cured import Cured, HealSettings
from nndiag.pipeline.curing_for_deployment import cure_for_deployment
from nndiag.pipeline.curing_for_training import cure_for_training
from nndiag.pipeline.job import Job, Loaded
from nndiag.pipeline.listener import Listener, Silence
from nndiag.pipeline.reach import Reach
from nndiag.pipeline.scanning import AnyPath, make_job
from nndiag.pipeline.surroundings import surroundings
from nndiag.records.healing import Healing
from nndiag.records.level import Level
from nndiag.records.report import Diagnosis
from nndiag.report.document import render_json
from nndiag.surgery.writing import check_destination, write

SUFFIX = ".heal.json"

__all__ = ["SUFFIX", "HealSettings", "heal"]


def heal(
    path: AnyPath, out: AnyPath | None, settings: HealSettings, listener: Listener | None = None
) -> Healing:
    """Heal a checkpoint.

    Args:
        path: the checkpoint; it is never changed.
        out: where the new one goes, and beside it ``OUT.heal.json``; ``None`` for a dry run.
        settings: the goal and everything else.
        listener: told of choices and progress.

    Returns:
        What was done, and what it did.

    Raises:
        UsageError: options or configuration are wrong, or the target is there already.
        InputError, ModelError: it could not be done, or the result is worse than promised. Nothing is written, then.
    """
    source, target = Path(path), None if out is None else Path(out)
    if target is None and not settings.dry_run:
        raise UsageError("--out", "it is missing", "name a new checkpoint, or add --dry-run")
    if target is not None:
        check_destination(source, target)
        check_destination(source, _document(target))
    scan = replace(settings.scan, goal=settings.goal, cache=None)
    job, reach = make_job([source], scan, listener or Silence())
    _require(job, reach, source)
    model, probe = job.inputs.model, job.inputs.probe
    assert model is not None
    assert probe is not None
    loaded = job.load(0, model)
    before = job.examine(loaded, model)
    _require_layers(before, settings.layers)
    cure = cure_for_training if settings.goal == "train" else cure_for_deployment
    cured = cure(job, loaded, before, settings)
    shallow = before.level if before.level in ("weights", "activations") else "gradients"
    found = Healing(
        nndiag_version=nndiag.__version__,
        goal=settings.goal,
        source=str(source),
        written=None if settings.dry_run or target is None else str(target),
        samples=len(probe),
        random_probe=probe.random,
        level=shallow,
        actions=cured.actions,
        left=cured.left,
        suggestions=cured.suggestions,
        snippet=cured.snippet,
        loss_before=cured.loss_before,
        loss_after=cured.loss_after,
        output_change=cured.output_change,
        parameters_before=before.checkpoint.parameters,
        parameters_after=cured.after.checkpoint.parameters,
        findings_before=_counted(before, shallow),
        findings_after=_counted(cured.after, shallow),
        widths=None if cured.widths is None else {name: dict(sizes) for name, sizes in cured.widths.items()},
        cost_before=None if cured.costs is None else cured.costs[0],
        cost_after=None if cured.costs is None else cured.costs[1],
    )
    job.notes.close()
    if settings.dry_run or target is None:
        return found
    return _written(job, loaded, cured, found, target)


def _written(job: Job, loaded: Loaded, cured: Cured, found: Healing, target: Path) -> Healing:
    """Write the new checkpoint and the document beside it, both or neither."""
    told: list[Healing] = []
    around = surroundings(job, cured, target)

    def beside(notes: tuple[str, ...]) -> dict[str, bytes]:
        told.append(found.model_copy(update={"notes": (*around.said, *notes)}))
        return {**around.beside, _document(target).name: render_json(told[-1]).encode()}

    write(
        loaded.checkpoint,
        loaded.fitted,
        cured.edits,
        target,
        model=cured.original,
        surroundings=around.inside,
        permission=job.permission,
        beside=beside,
    )
    return told[-1]


def _document(target: Path) -> Path:
    return target.with_name(target.name + SUFFIX)


def _require(job: Job, reach: Reach, source: Path) -> None:
    """Make sure that there is one checkpoint, and a model and a probe to prove treatments on."""
    if job.inputs.refused:
        raise job.inputs.refused[0]
    if len(job.inputs.files) > 1:
        last = job.inputs.files[-1]
        raise UsageError(
            source,
            f"holds {len(job.inputs.files)} checkpoints, and one is healed",
            f"name one, such as {last}",
        )
    if reach.level < Level.ACTIVATIONS:
        raise UsageError("heal", f"without {reach.missing} nothing can be proved", f"add {reach.flag}")
    if job.level < Level.ACTIVATIONS:
        raise UsageError("heal", f"--level {job.level.label} shows too little", "leave --level out")


def _require_layers(found: Diagnosis, patterns: Iterable[str]) -> None:
    """Make sure that every pattern of layers to treat fits one."""
    names = [layer.name for layer in found.layers]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = nearest(pattern, names, cutoff=0.0) or "*"
            what = f"--layers {pattern}"
            raise UsageError(what, "no layer of the network fits it", f'name some, such as "{close}"')


def _counted(diagnosis: Diagnosis, level: str) -> dict[str, int]:
    """Count the findings of nodes and layers above notes, by code, as far as a level."""
    most = str(int(Level.parse(level)))
    parts: Iterable[object] = (*diagnosis.layers, *diagnosis.nodes)
    codes = [
        finding.code
        for part in parts
        for finding in part.findings  # type: ignore[attr-defined]
        if finding.severity != "info" and finding.code[2] <= most
    ]
    return dict(sorted(Counter(codes).items()))
