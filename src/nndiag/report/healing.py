"""The screen of ``heal``: what was done and where, what it did, what was left, and what comes next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nndiag.records.document import NOISE
from nndiag.records.healing import HealedNode, Healing, LeftNode, Suggestion
from nndiag.report.look import Look
from nndiag.report.numbers import counted, duration, number, ranges
from nndiag.report.screen import print_parts
from nndiag.report.words import heading

_MOST = 8
_MANNERS = 6
_PROMISES = {
    "unchanged": "function kept",
    "measured": "loss measured",
    "finite": "finite again",
}
_KINDS = {
    "reinitialise": "start anew",
    "bias_warmup": "raise bias",
    "angular_noise": "turn",
    "leaky_slope": "leaky slope",
    "lower_lr": "lower rate",
    "raise_lr": "raise rate",
    "prune": "take out",
    "merge": "merge",
}


def render_healing(found: Healing, console: Console, *, verbose: bool) -> None:
    """Print what healing did, for people.

    Args:
        found: what was done.
        console: where to.
        verbose: every group of nodes, and not the first few alone.
    """
    look = Look.of(console)
    print_parts(_parts(found, look, verbose), console, look)


def _parts(found: Healing, look: Look, verbose: bool) -> Iterator[RenderableType]:
    yield _headline(found, look)
    yield Padding(look.flow(_basis(found), "quiet"), (0, 0, 0, 2))
    if found.random_probe:
        yield Padding(look.text(f"{NOISE[0].upper()}{NOISE[1:]}"), (0, 0, 0, 2))
    most = 10_000 if verbose else _MOST
    if found.actions:
        planned = found.written is None
        yield from heading("What would be done" if planned else "What was done", look)
        yield Padding(_actions(found, look, most), (0, 0, 0, 2))
        yield from _manners(found.actions, look)
        yield from heading("What it does on the probe" if planned else "What it did on the probe", look)
        yield Padding(_effects(found, look), (0, 0, 0, 2))
    if found.left:
        yield from heading("Left as it is", look)
        yield Padding(_left(found.left, look, most), (0, 0, 0, 2))
    if found.suggestions:
        yield from heading("For your optimiser", look, "nothing in the file can do this")
        yield Padding(_suggestions(found.suggestions, look, most), (0, 0, 0, 2))
    if found.snippet:
        yield Text()
        for line in found.snippet.splitlines():
            yield look.text(("      " + line, "quiet"))
    yield from heading("Next", look)
    steps = Table.grid(padding=(0, 1, 0, 0))
    steps.add_column(width=len(look.glyphs.arrow))
    steps.add_column(ratio=1, overflow="fold")
    for sentence in _next(found):
        steps.add_row(look.text((look.glyphs.arrow, "act")), look.text(sentence))
    yield Padding(steps, (0, 0, 0, 2))


def _headline(found: Healing, look: Look) -> Text:
    if not found.actions:
        why = "nothing could be treated" if found.left or found.suggestions else _nothing(found)
        return look.text((look.glyphs.good, "good"), " ", (f"Nothing was changed: {why}.", "good headline"))
    nodes = counted(sum(action.index is not None for action in found.actions), "node")
    layers = counted(len({action.layer for action in found.actions}), "layer")
    verb = "would be treated" if found.written is None else "treated"
    kept = all(action.promise == "unchanged" for action in found.actions)
    rest = ", and the function stays as it is" if kept else ""
    return look.text((look.glyphs.good, "good"), " ", (f"{nodes} of {layers} {verb}{rest}.", "good headline"))


def _nothing(found: Healing) -> str:
    return "none of its findings calls for it" if found.findings_before else "nothing is wrong with it"


def _basis(found: Healing) -> Iterator[str]:
    yield f"{found.source}, goal {found.goal}"
    yield f"on {counted(found.samples, 'sample')}{' of random numbers' if found.random_probe else ''}"
    yield f"examined to {found.level}"


def _grouped(nodes: Sequence[HealedNode]) -> dict[tuple[str, str, str, str], list[HealedNode]]:
    """Gather nodes of one layer with one cause that were treated alike."""
    groups: dict[tuple[str, str, str, str], list[HealedNode]] = {}
    for node in nodes:
        key = (node.layer, node.kind, f"{node.code} {node.reason}", node.promise)
        groups.setdefault(key, []).append(node)
    return groups


def _who(nodes: Sequence[HealedNode | LeftNode]) -> str:
    numbers = [node.index for node in nodes if node.index is not None]
    return f"{len(numbers):,} ({ranges(numbers, 4)})" if numbers else "all"


def _columns(look: Look, *names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=look.style("quiet"))
    for name in names:
        table.add_column(look.words(name), overflow="fold", vertical="top")
    return table


def _actions(found: Healing, look: Look, most: int) -> Table:
    table = _columns(look, "layer", "nodes", "cause", "what", "")
    groups = list(_grouped(found.actions).items())
    promises = _PROMISES if found.loss_before is not None else {**_PROMISES, "measured": "outputs measured"}
    for (layer, kind, cause, promise), nodes in groups[:most]:
        style = "good" if promise == "unchanged" else "warning"
        table.add_row(
            look.text((look.clip(layer, 24), "name")), look.text(_who(nodes)), look.text(cause),
            look.text((_KINDS.get(kind, kind), "strong")), look.text((promises[promise], style)),
        )  # fmt: skip
    _say_more(table, len(groups) - most, look)
    return table


def _manners(actions: Sequence[HealedNode], look: Look) -> Iterator[RenderableType]:
    """Yield in full how things were done, each manner once."""
    manners = Counter((action.kind, action.detail) for action in actions)
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for (kind, detail), _ in manners.most_common(_MANNERS):
        table.add_row(look.text((f"{_KINDS.get(kind, kind)}:", "quiet")), look.text((detail, "quiet")))
    yield Padding(table, (0, 0, 0, 2))


def _say_more(table: Table, count: int, look: Look) -> None:
    if count > 0:
        table.add_row(
            look.text((look.glyphs.ellipsis, "quiet")), look.text((f"{count:,} more (--verbose)", "quiet"))
        )


def _effects(found: Healing, look: Look) -> Table:
    table = _columns(look, "", "before", "after")
    table.add_row(
        look.text("loss"), look.text(number(found.loss_before)), look.text(number(found.loss_after))
    )
    change = "not finite before" if found.output_change is None else number(found.output_change)
    table.add_row(look.text("change of outputs"), look.text(""), look.text(f"{change} of their scale"))
    nodes = [action for action in found.actions if action.index is not None]
    if nodes and found.goal == "train":
        _revived(nodes, table, look)
    counts = (f"{found.parameters_before:,}", f"{found.parameters_after:,}")
    table.add_row(look.text("parameters"), *map(look.text, counts))
    costs = (found.cost_before, found.cost_after)
    if costs[0] is not None and costs[1] is not None:
        flops = [number(cost.flops) for cost in costs if cost is not None]
        times = [_time(cost.seconds) for cost in costs if cost is not None]
        table.add_row(look.text("operations a sample"), *map(look.text, flops))
        table.add_row(look.text("time of a batch"), *map(look.text, times))
    for code in sorted({*found.findings_before, *found.findings_after}):
        before, after = found.findings_before.get(code, 0), found.findings_after.get(code, 0)
        if before != after:
            table.add_row(look.text(f"findings {code}"), look.text(f"{before:,}"), look.text(f"{after:,}"))
    return table


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} µs" if seconds < 0.01 else duration(seconds)


def _revived(nodes: Sequence[HealedNode], table: Table, look: Look) -> None:
    """Say how many of the treated nodes get a gradient and fire."""
    reached = [_share(nodes, _reached_before), _share(nodes, _reached_after)]
    table.add_row(look.text("treated nodes with gradient"), *map(look.text, reached))
    known = [action for action in nodes if action.active_after is not None]
    if known:
        firing = [_share(known, _fired_before), _share(known, _fired_after)]
        table.add_row(look.text("treated nodes that fire"), *map(look.text, firing))


def _share(nodes: Sequence[HealedNode], holds: Callable[[HealedNode], bool]) -> str:
    return f"{sum(map(holds, nodes)):,} of {len(nodes):,}"


def _reached_before(action: HealedNode) -> bool:
    return bool(action.gradient_before)


def _reached_after(action: HealedNode) -> bool:
    return bool(action.gradient_after)


def _fired_before(action: HealedNode) -> bool:
    return bool(action.active_before)


def _fired_after(action: HealedNode) -> bool:
    return bool(action.active_after)


def _left(nodes: Sequence[LeftNode], look: Look, most: int) -> Table:
    table = _columns(look, "layer", "nodes", "cause", "wanted", "why not")
    groups: dict[tuple[str, str, str], list[LeftNode]] = {}
    for node in nodes:
        groups.setdefault((node.layer, node.kind, node.code), []).append(node)
    for (layer, kind, code), group in list(groups.items())[:most]:
        reasons = Counter(node.reason for node in group).most_common()
        example = "" if len(reasons) == 1 else "for example: "
        table.add_row(
            look.text((look.clip(layer, 24), "name")), look.text(_who(group)), look.text(code),
            look.text(_KINDS.get(kind, kind)), look.text(example + reasons[0][0]),
        )  # fmt: skip
    _say_more(table, len(groups) - most, look)
    return table


def _suggestions(suggestions: Sequence[Suggestion], look: Look, most: int) -> Table:
    table = _columns(look, "layer", "nodes", "cause", "what", "rate", "largest stable", "why")
    for one in suggestions[:most]:
        table.add_row(
            look.text((look.clip(one.layer, 24), "name")),
            look.text(f"{len(one.nodes):,}" if one.nodes else "all"),
            look.text(one.code), look.text((_KINDS.get(one.kind, one.kind), "strong")),
            look.text(number(one.lr)), look.text(number(one.largest_stable_lr)), look.text(one.reason),
        )  # fmt: skip
    if len(suggestions) > most:
        table.add_row(
            look.text((f"{look.glyphs.ellipsis} {len(suggestions) - most} more (--verbose)", "quiet"))
        )
    return table


def _next(found: Healing) -> Iterator[str]:
    if found.written is None:
        yield "nothing was written: leave --dry-run out, and give --out NEW"
        return
    new = shlex.quote(found.written)
    same = "" if found.actions else ", the same in every number as the one that came in"
    yield f"{found.written} is written{same}; what was done stands in {found.written}.heal.json"
    yield (
        f"continue training from it, then nndiag scan {new}"
        if found.goal == "train"
        else f"nndiag scan {new}"
    )
