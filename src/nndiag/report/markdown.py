"""The report as Markdown: a summary for a build's page, a pull request or a notebook."""

from __future__ import annotations

from collections.abc import Iterator

from nndiag.records.report import VERDICTS, Diagnosis, LayerDiagnosis, Report
from nndiag.report.certificate import certificate_line
from nndiag.report.columns import EXPLAINED, MEASURES, unseen
from nndiag.report.course import base_name, course
from nndiag.report.events import events
from nndiag.report.facts import method_line, numbers_line, place, unmeasured_line, unused_line
from nndiag.report.groups import Group, advise, gather, tally
from nndiag.report.inert import inert
from nndiag.report.numbers import NOT_FINITE, counted, percent
from nndiag.report.phrases import hence, imperative, kind_name
from nndiag.report.trials import together, tried
from nndiag.report.words import reason, which

_ICONS = {"error": "❌", "warning": "⚠️", "info": "ℹ️", "good": "✅"}


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown, in which no name from the checkpoint acts as markup."""
    blocks = [*_story(report)]
    for diagnosis in report.checkpoints[:-1]:
        name = _code(base_name(diagnosis.checkpoint.path))
        blocks += [f"<details><summary>{name}</summary>", *_checkpoint(diagnosis), "</details>"]
    blocks += _checkpoint(report.checkpoints[-1])
    return "\n\n".join(blocks) + "\n"


def _story(report: Report) -> Iterator[str]:
    happened = events(report)
    first = happened[0]
    yield f"# nndiag: {_ICONS[first.kind]} {inert(first.sentence)}"
    if len(report.checkpoints) == 1:
        return
    rest = [f"- {_ICONS[one.kind]} {inert(one.sentence)}{_after(one.hence)}" for one in happened[1:]]
    if rest:
        yield "\n".join(rest)
    run = course(report)
    rows = [["layer", *(inert(label) for label in run.labels)]]
    for layer in run.layers:
        shares = (None if n is None else n / max(layer.nodes, 1) for n in layer.degenerate)
        rows.append([_code(layer.name), *(percent(share) for share in shares)])
    yield f"Share of degenerate nodes per {run.word}:"
    yield _table(rows, left=1)


def _checkpoint(diagnosis: Diagnosis) -> Iterator[str]:
    where = place(diagnosis)
    yield f"## {_code(base_name(diagnosis.checkpoint.path))}" + (f", {where}" if where else "")
    yield " · ".join(inert(words) for words in (*numbers_line(diagnosis), *method_line(diagnosis)))
    if certificate := " · ".join(inert(words) for words in certificate_line(diagnosis)):
        yield certificate
    yield _layers(diagnosis)
    for words in (unused_line(diagnosis), unmeasured_line(diagnosis)):
        if words:
            yield inert(words[0].upper() + words[1:])
    groups = gather(diagnosis)
    if groups:
        found = tally(diagnosis)
        totals = [
            counted(found[severity], severity) for severity in ("error", "warning", "info") if found[severity]
        ]
        yield f"### Findings ({', '.join(totals)})"
        yield "\n".join(_finding(group) for group in groups)
    if advice := advise(diagnosis):
        yield "### What to do"
        yield "\n".join(
            f"- **{imperative(one.kind)} {counted(len(one.nodes), 'node')}** of {_code(one.layer)}: "
            f"{inert(reason(one))}{f' ({shown})' if (shown := tried(one)) else ''}"
            for one in advice
        )
    if whole := together(diagnosis):
        yield whole


def _layers(diagnosis: Diagnosis) -> str:
    taken = [entry for entry in MEASURES if any(entry[0] in layer.measures for layer in diagnosis.layers)]
    rows = [
        [
            "layer",
            "kind",
            "verdicts",
            "nodes",
            *(heading.replace("-\n", "").replace("\n", " ") for _, heading, _ in taken),
        ]
    ]
    for layer in diagnosis.layers:
        shown = [NOT_FINITE if layer.measures.get(key, 0.0) is None else write(layer.measures.get(key))
                 for key, _, write in taken]  # fmt: skip
        rows.append(
            [_code(layer.name), inert(kind_name(layer.kind)), _verdicts(layer), f"{layer.nodes:,}", *shown]
        )
    explained = " · ".join(EXPLAINED[key] for key, _, _ in taken)
    return _table(rows, left=3) + (f"\n\n{explained}" if explained else "")


def _verdicts(layer: LayerDiagnosis) -> str:
    counts = layer.verdicts | {"unknown": layer.verdicts.get("unknown", 0) - layer.unobserved}
    said = [f"{counts[one]:,} {one}" for one in VERDICTS if counts.get(one)]
    return ", ".join([*said, f"{layer.unobserved:,} {unseen(layer)}"] if layer.unobserved else said)


def _finding(group: Group) -> str:
    where = "the model" if group.layer is None else _code(group.layer)
    if group.nodes:
        where += f", {which(group.nodes, group.layer_nodes)}"
    if group.unsteady:
        where += f", {group.unsteady:,} of them unsteady"
    severity = ("error", "warning", "info")[group.gravity]
    what = f"**{inert(group.code)} {inert(group.name)}**"
    said = f"- {_ICONS[severity]} {severity} {what}, {where}: {_sentence(group.message)}"
    return said + _after(hence(group))


def _sentence(words: str) -> str:
    return inert(words) + ("" if words.endswith(".") else ".")


def _after(words: str) -> str:
    return f" Hence {inert(words)}." if words else ""


def _code(name: str) -> str:
    return f"<code>{inert(name)}</code>"


def _table(rows: list[list[str]], left: int) -> str:
    ruler = [":--" if column < left else "--:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], ruler, *rows[1:]))
