"""What ``nndiag explain`` says of a finding, and the page of all of them."""

from __future__ import annotations

from nndiag.rules.base import Rule
from nndiag.rules.thresholds import THRESHOLDS, Threshold

_SURE = {
    "weights": "Certain as far as it goes: it is read off the parameters, and no data can change it.",
    "activations": "It rests on the probe: on every sample of it, and of nothing else. Other data may show otherwise. "
    "A verdict that does not hold in every fold of the probe is marked unsteady and is never an error.",
    "gradients": "It rests on the probe and its loss; where it is zero it is exactly zero for every sample. A verdict "
    "that does not hold in every fold of the probe is marked unsteady and is never an error.",
    "curvature": "It rests on the probe and its loss, and holds near these weights only. Every eigenvalue comes with "
    "the solver's residual, and with its standard error over the folds of the probe; a verdict that does not hold in "
    "every fold is marked unsteady and is never an error.",
    "run": "It rests on the checkpoints that were compared; between two of them nothing was seen.",
}
_MATTERS = {
    "error": "Yes: it breaks the network, or most of a layer, until it is mended.",
    "warning": "Where there are many of them. Networks that train well have some such nodes too; each costs capacity, "
    "or hinders training, and says where to look.",
    "info": "Rarely: it is information and no defect.",
}


def headline(rule: Rule) -> str:
    """Return code, name and summary on one line."""
    return f"{rule.code} {rule.name}: {rule.summary}"


def subtitle(rule: Rule) -> str:
    """Return severity, what it is on, and what it needs."""
    asked = f" and {rule.option}" if rule.option else ""
    return f"{rule.severity}, on a {rule.on}, needs the {level_word(rule)} level{asked}"


def level_word(rule: Rule) -> str:
    """Return the word for the level that a finding needs; ``"run"`` where it needs several checkpoints."""
    return rule.level.label if rule.level else "run"


def sections(rule: Rule) -> tuple[tuple[str, str], ...]:
    """Return headings and paragraphs, in the order in which one asks."""
    doc = rule.doc
    sure = f"{doc.sure} {_SURE[level_word(rule)]}" if doc.sure else _SURE[level_word(rule)]
    many = _MATTERS[rule.severity] if rule.on == "node" or rule.severity != "warning" else _OF_ONE
    return (
        ("What it means", doc.meaning),
        ("How it is measured", doc.measured),
        ("How sure it is", sure),
        ("Does it matter", f"{many} Harmless: {doc.harmless[0].lower()}{doc.harmless[1:]}"),
        ("Why it happens", doc.why),
        ("What to do", doc.do),
        ("Source", doc.source),
    )


_OF_ONE = "It says where a network loses capacity, speed or answers; look at the loss to see how much."


def thresholds_of(rule: Rule) -> tuple[Threshold, ...]:
    """Return the thresholds that a rule uses."""
    return tuple(threshold for threshold in THRESHOLDS if threshold.name in rule.thresholds)


def page(rules: tuple[Rule, ...]) -> str:
    """Return the catalogue as Markdown: a table, then every finding in full, then the thresholds."""
    lines = [
        "# Findings",
        "",
        "Written by `make rules` from the catalogues in `src/nndiag/rules/` and `src/nndiag/comparing/`;",
        "`nndiag explain CODE` says the same.",
        "A code is never reused. Its hundreds digit is the level it needs: 1 weights, 2 activations, 3 gradients,",
        "4 curvature, 5 the whole model, 7 several checkpoints.",
        "",
        "| code | name | on | severity | level | holds where |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [{r.code}](#{r.code.lower()}-{r.name}) | {r.name} | {r.on} | {r.severity} | {level_word(r)} "
        f"| {_cell(r.summary)} |"
        for r in rules
    ]
    for rule in rules:
        lines += ["", f"## {rule.code} {rule.name}", "", f"{_capital(rule.summary)}: {subtitle(rule)}."]
        for heading, text in sections(rule):
            lines += ["", f"**{heading}.** {text}"]
        used = thresholds_of(rule)
        if used:
            lines += [
                "",
                "Thresholds: " + ", ".join(f"`{t.name}` = {t.default:g} {t.unit}" for t in used) + ".",
            ]
    lines += ["", "## Thresholds", "", "Set by name in `nndiag.toml`, table `[rules.thresholds]`.", ""]
    lines += ["| name | default | unit | decides |", "|---|---|---|---|"]
    lines += [f"| `{t.name}` | {t.default:g} | {_cell(t.unit)} | {_cell(t.decides)} |" for t in THRESHOLDS]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return text for a cell of a table, where a bar ends the cell."""
    return text.replace("|", "\\|")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
