"""The screen of healing, from records alone."""

from __future__ import annotations

import io

from rich.console import Console

from nndiag.records.healing import Costs, HealedNode, Healing, LeftNode, Suggestion
from nndiag.report.document import render_json
from nndiag.report.healing import render_healing

NODE = HealedNode(
    layer="fc", index=3, code="ND201", kind="reinitialise", reason="dead", detail="drawn anew", promise="unchanged",
    gradient_before=0.0, gradient_after=1e-9, active_before=0.0, active_after=0.5,
)  # fmt: skip
NOTHING = Healing(
    nndiag_version="1", goal="train", source="a.pt", written="b.pt", samples=100, level="gradients", actions=(),
    loss_before=1.0, loss_after=1.0, output_change=0.0, parameters_before=10, parameters_after=10,
    findings_before={}, findings_after={},
)  # fmt: skip


def shown(found: Healing, verbose: bool = False, width: int = 100, encoding: str = "utf-8") -> str:
    sheet = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    render_healing(found, Console(file=sheet, width=width, color_system=None, no_color=True), verbose=verbose)
    sheet.seek(0)
    return sheet.read()


def test_nothing_to_do_is_said_first() -> None:
    text = shown(NOTHING)
    assert text.startswith("✓ Nothing was changed: nothing is wrong with it.")
    assert "b.pt is written, the same in every number as the one that came in" in text


def test_findings_that_call_for_nothing_are_no_clean_bill() -> None:
    text = shown(NOTHING.model_copy(update={"findings_before": {"ND301": 4}, "findings_after": {"ND301": 4}}))
    assert text.startswith("✓ Nothing was changed: none of its findings calls for it.")


def test_without_a_loss_it_is_the_outputs_that_were_measured() -> None:
    measured = NODE.model_copy(update={"promise": "measured"})
    text = shown(NOTHING.model_copy(update={"actions": (measured,), "loss_before": None, "loss_after": None}))
    assert "outputs measured" in text


def test_what_was_done_what_it_did_and_what_was_left() -> None:
    change = {
        "actions": (NODE, NODE.model_copy(update={"index": 7, "promise": "measured"})),
        "left": (LeftNode(layer="fc", index=1, code="ND204", kind="reinitialise", reason="it would cost too much"),),
        "suggestions": (Suggestion(layer="out", nodes=(0,), code="ND402", kind="lower_lr", reason="sharp", lr=0.1,
                                   largest_stable_lr=0.2),),
        "snippet": "x = 1\n",
        "findings_before": {"ND201": 2, "ND204": 1}, "findings_after": {"ND204": 1},
    }  # fmt: skip
    text = shown(NOTHING.model_copy(update=change))
    assert "2 nodes of 1 layer treated." in text
    assert "function kept" in text
    assert "loss measured" in text
    assert "treated nodes with gradient  0 of 2" in text
    assert "findings ND201" in text
    assert "findings ND204" not in text
    assert "it would cost too much" in text
    assert "0.200" in text
    assert "x = 1" in text


def test_a_smaller_network_says_what_it_takes() -> None:
    change = {
        "goal": "deploy", "actions": (NODE.model_copy(update={"kind": "prune"}),), "parameters_after": 8,
        "cost_before": Costs(flops=200, seconds=2e-4), "cost_after": Costs(flops=100, seconds=1e-4),
    }  # fmt: skip
    text = shown(NOTHING.model_copy(update=change))
    assert "with gradient" not in text
    assert "200 µs" in text
    assert "take out" in text


def test_names_cannot_steer_the_terminal_and_ascii_will_do() -> None:
    hostile = NODE.model_copy(update={"layer": "a\x1b[31m\n::error::b", "reason": "[bold]\x07"})
    text = shown(NOTHING.model_copy(update={"actions": (hostile,)}), encoding="ascii", width=60)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\n::error" not in text
    assert text.isascii()


def test_many_groups_are_folded_unless_all_are_wanted() -> None:
    many = tuple(NODE.model_copy(update={"layer": f"layer{i:02}"}) for i in range(30))
    found = NOTHING.model_copy(update={"actions": many})
    assert "layer29" not in shown(found)
    assert "(--verbose)" in shown(found)
    assert "layer29" in shown(found, verbose=True)


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    text = render_json(NOTHING.model_copy(update={"loss_before": float("nan"), "output_change": None}))
    assert '"loss_before": null' in text
