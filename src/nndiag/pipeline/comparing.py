"""``compare``: reports, checkpoints or runs, as one run in training order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nndiag.errors import UsageError
from nndiag.rules.base import OF_RUNS

if TYPE_CHECKING:
    from nndiag.config.policy import Policy
    from nndiag.pipeline.listener import Listener
    from nndiag.pipeline.settings import ScanSettings
    from nndiag.records.comparison import Comparison
    from nndiag.rules.diagnose import Selection

AnyPath = str | os.PathLike[str]
Json = dict[str, Any]


@dataclass(frozen=True)
class CompareSettings:
    """What to do: list every node, take two runs for each other's nodes in any order, and how to scan what is no
    report.

    ``select`` and ``ignore`` choose among ND701 to ND708, and ``thresholds`` changes those of the rules by name: over
    what the last run's ``nndiag.toml`` and the user's ``pyproject.toml`` say.
    """

    all_nodes: bool = False
    match: bool = False
    scan: ScanSettings | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: dict[str, float] | None = None


def compare(
    paths: AnyPath | Sequence[AnyPath],
    settings: CompareSettings | None = None,
    listener: Listener | None = None,
) -> Comparison:
    """Say how the nodes of a network move along a run, or from one checkpoint to another.

    Args:
        paths: a run directory; or checkpoints, or JSON reports of scans, in training order; or two runs, of which the
            last checkpoints are compared.
        settings: what to do.
        listener: told of choices and progress.

    Raises:
        UsageError: options or configuration are wrong, or there is nothing to compare.
        InputError, ModelError: something is missing, refused, or does not fit.
    """
    import nndiag
    from nndiag.comparing.judging import compare_run
    from nndiag.comparing.matching import matched
    from nndiag.comparing.reading import run_of

    chosen = settings or CompareSettings()
    several = [Path(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    runs = _runs(several, chosen, listener)
    if len(runs) == 2 and (chosen.match or max(len(run) for run in runs) > 1):
        diagnoses = [runs[0][-1], runs[1][-1]]  # two runs: where each of them ended
    else:
        diagnoses = [one for run in runs for one in run]
        if all(is_report(path) for path in several) and chosen.scan is not None:
            diagnoses = _some(diagnoses, chosen.scan)
    if len(diagnoses) < 2:
        raise UsageError(
            "compare",
            "there is one checkpoint, and nothing to compare it with",
            "give a run, or a second checkpoint",
        )
    if chosen.match and len(diagnoses) != 2:
        raise UsageError("--match", "nodes are matched between two checkpoints or runs", "give two of them")
    run = run_of(diagnoses)
    excess: Mapping[str, float] = {}
    if chosen.match:
        found = matched(run)
        run, excess = found.run, found.excess
        _tell(excess, listener)
    selection = _selection(diagnoses, chosen)
    return compare_run(
        run, nndiag.__version__, policy=_policy(diagnoses), selection=selection, all_nodes=chosen.all_nodes,
        settings={
            "match": chosen.match, "match_excess": dict(excess), "select": selection.select, "ignore": selection.ignore,
            "all_nodes": chosen.all_nodes, "thresholds": dict(selection.thresholds),
        },
    )  # fmt: skip


def is_report(path: Path) -> bool:
    """Whether a path names a JSON report, by its ending."""
    return path.suffix.lower() == ".json" and path.is_file()


def _runs(paths: Sequence[Path], settings: CompareSettings, listener: Listener | None) -> list[list[Json]]:
    """Return the checkpoints of each path; single checkpoints, and single reports, are together one run."""
    from nndiag.comparing.reading import read_reports

    if not paths:
        raise UsageError("compare", "no run is given", "name a run directory, checkpoints or JSON reports")
    if all(is_report(path) for path in paths):
        runs = [list(read_reports([path])) for path in paths]
    elif any(is_report(path) for path in paths):
        raise UsageError("compare", "reports and checkpoints are mixed", "give the ones or the others")
    elif len(paths) == 2 and all(path.is_dir() for path in paths):
        runs = [_scanned([path], settings, listener, last=1) for path in paths]
    else:
        runs = [_scanned(paths, settings, listener)]
        if settings.match and len(runs[0]) == 2:
            runs = [[one] for one in runs[0]]
    if len(runs) > 2 or all(len(run) == 1 for run in runs):
        return runs if len(runs) == 2 else [[one for run in runs for one in run]]
    return runs


def _some(diagnoses: list[Json], settings: ScanSettings) -> list[Json]:
    """Return the checkpoints that ``--every`` and ``--last`` choose, as a scan chooses them."""
    found = diagnoses[:: -(settings.every or 1)][::-1]
    return found[-settings.last :] if settings.last is not None else found


def _scanned(
    paths: Sequence[Path], settings: CompareSettings, listener: Listener | None, last: int | None = None
) -> list[Json]:
    from nndiag.pipeline.scanning import scan
    from nndiag.pipeline.settings import ScanSettings

    asked = settings.scan or ScanSettings()
    outcome = scan(paths, replace(asked, last=last) if last is not None else asked, listener)
    for error in outcome.refused:
        if listener is not None:
            listener.note(f"left out: {error}")
    found: list[Json] = outcome.report.model_dump(mode="json")["checkpoints"]
    return found


def _policy(diagnoses: Sequence[Json]) -> Policy | None:
    from nndiag.gating.policies import find_policy

    return find_policy({"checkpoints": [diagnoses[-1]]}, None, None, Path.cwd())


def _tell(excess: Mapping[str, float], listener: Listener | None) -> None:
    for name, share in excess.items():
        if listener is not None:
            listener.note(
                f"layer {name} is too wide to be matched exactly: the sum of distances may be up to {share:.1%} "
                "above the least"
            )


def _selection(diagnoses: Sequence[Json], settings: CompareSettings) -> Selection:
    """Return which findings are wanted, and the thresholds: as asked, else as the configuration has it."""
    found = selection_of(diagnoses)
    if settings.select or settings.ignore:
        found = replace(found, select=settings.select, ignore=settings.ignore)
    for code in settings.select:
        if not any(one.startswith(code) for one in OF_RUNS):
            raise UsageError(
                f"--select {code}", "compare finds ND701 to ND708", "select this in nndiag scan, or none here"
            )
    return replace(found, thresholds=dict(found.thresholds) | (settings.thresholds or {}))


def selection_of(diagnoses: Sequence[Json]) -> Selection:
    """Return what the configuration of the last run, over the user's, says of findings and thresholds."""
    from nndiag.config.load import load_run_config, load_user_config
    from nndiag.config.record import merge
    from nndiag.records.document import subject_of
    from nndiag.rules.diagnose import Selection

    run = load_run_config(Path(subject_of(diagnoses[-1])))
    rules = merge(load_user_config(Path.cwd()), run).rules
    return Selection(rules.select or (), rules.ignore or (), rules.thresholds)
