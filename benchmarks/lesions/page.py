"""The counts as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.lesions.counting import Count
from benchmarks.markdown import rows, section

Counts = Mapping[str, Count]
"""By architecture, over its seeds."""


def lesions(counts: Counts) -> list[str]:
    """Return recall and precision per finding and architecture."""
    total = Count()
    for count in counts.values():
        total.add(count)
    lines = section(
        "Planted lesions",
        "Recall: of the wounded nodes, those at which the finding stands that names the wound. Precision: of the nodes "
        "at which a finding above a note stands that follows from no other, those that bear this wound, or are dead or "
        "dormant by a plain hook because of a wound elsewhere; what stood there before the wound is not counted.",
    )
    codes = sorted(set(total.planted) | set(total.own))
    body = [[code, _of(total.found[code], total.planted[code]), _of(total.right[code], total.own[code]),
             str(total.followed[code] or "")] for code in codes]  # fmt: skip
    lines += rows(["finding", "recall", "precision", "of them dead or dormant by another's wound"], body)
    names = list(counts)
    lines += section("By architecture", "Recall, then precision.")
    table = []
    for code in codes:
        cells = [
            f"{_short(one.found[code], one.planted[code])}, {_short(one.right[code], one.own[code])}"
            for one in counts.values()
        ]
        table.append([code, *cells])
    lines += rows(["finding", *names], table)
    lines += section("Units that fire on 0.5 % of the samples, alive")
    lines += rows(
        ["architecture", "planted", "called dead, constant, cut off or flat"],
        [[name, str(one.sparse), str(one.sparse_called_dead)] for name, one in counts.items() if one.sparse],
    )
    for title, lists in (("Missed", total.missed), ("Findings that no wound explains", total.false)):
        if lists:
            lines += [f"## {title}", "", *(f"- {line}" for line in lists[:30]), ""]
    return lines


def untouched(counts: Counts, before: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the share of nodes flagged in networks without wounds, with accuracies."""
    lines = section(
        "Networks without wounds",
        "Nodes with a finding above a note that follows from no other. The next table takes each of them out.",
    )
    body = []
    for name, one in counts.items():
        flagged = one.untouched_nodes
        which = ", ".join(f"{code} ({n})" for code, n in sorted(one.untouched_flagged.items()))
        shown = " ".join(f"{value:.3f}" for value in before[name])
        body.append(
            [name, shown, f"{one.untouched:,}", f"{flagged} ({100 * flagged / one.untouched:.1f} %)", which]
        )
    return lines + rows(["architecture", "accuracy", "nodes", "flagged", "with"], body)


def _of(part: int, whole: int) -> str:
    return f"{part / whole:.3f} ({part:,} of {whole:,})" if whole else "–"


def _short(part: int, whole: int) -> str:
    return f"{part}/{whole}" if whole else "–"
