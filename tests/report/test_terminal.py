from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from nndiag.records.report import EveryNode, Report, Unmeasured
from nndiag.report.markdown import render_markdown
from nndiag.report.terminal import render_terminal, render_text
from tests.report import synthetic
from tests.report.builder import dead, diagnosis, layer, node, report

HINTS = ["add --data probe.safetensors: [bold]curvature[/bold] needs it"]


def screen(made: Report, verbose: bool = False, **environ: str) -> str:
    sheet = io.StringIO()
    console = Console(
        file=sheet, width=80, force_terminal=True, legacy_windows=False,
        _environ={"TERM": "xterm-256color", "COLORTERM": "truecolor"} | environ,
    )  # fmt: skip
    render_terminal(made, console, verbose=verbose, hints=HINTS)
    return sheet.getvalue()


def plain(ansi: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", ansi)


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", synthetic.ALL)
def test_no_line_is_wider_than_the_console(name: str, width: int, verbose: bool) -> None:
    text = render_text(synthetic.ALL[name](), width=width, verbose=verbose, hints=HINTS)
    wide = [line for line in text.splitlines() if cell_len(line) > width]
    assert wide == []
    assert not [line for line in text.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("name", synthetic.ALL)
def test_colour_adds_nothing_but_colour(name: str) -> None:
    made = synthetic.ALL[name]()
    coloured = screen(made)
    assert "\x1b[" in coloured
    lines = [line.rstrip() for line in plain(coloured).splitlines()]
    assert lines == render_text(made, hints=HINTS).splitlines()


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("name", ["dying", "hostile"])
def test_without_colour_there_is_no_control_code(name: str, environ: dict[str, str]) -> None:
    shown = screen(synthetic.ALL[name](), **environ)
    assert all(character == "\n" or character.isprintable() for character in shown)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
@pytest.mark.parametrize("name", synthetic.ALL)
def test_other_encodings_get_ascii(name: str, encoding: str) -> None:
    sheet = io.BytesIO()
    file = io.TextIOWrapper(sheet, encoding=encoding, errors="strict", newline="\n")
    console = Console(file=file, width=80, _environ={})
    render_terminal(synthetic.ALL[name](), console, verbose=True, hints=HINTS)
    file.flush()
    lines = sheet.getvalue().decode("ascii").splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("verbose", [False, True])
def test_hostile_names_are_shown_and_do_nothing(verbose: bool) -> None:
    calm = [line for line in screen(synthetic.hostile(), verbose).splitlines() if "[red]x[/]" in plain(line)]
    assert len(calm) >= 4
    shown = plain(screen(synthetic.hostile(), verbose))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[31mred" in shown
    assert r"a\nb" in shown
    assert not [line for line in shown.splitlines() if line.strip() in ("b", "b:")]
    assert HINTS[0] in " ".join(shown.split())


@pytest.mark.parametrize("name", ["not_finite", "cnn", "dying"])
def test_nan_is_never_on_the_screen(name: str) -> None:
    assert not re.search(
        r"\b(nan|inf)\b", render_text(synthetic.ALL[name]()).replace("are NaN or infinite", ""), re.I
    )


def test_the_first_screen_tells_the_story_and_what_to_do() -> None:
    first = render_text(synthetic.dying(), hints=HINTS).splitlines()[:26]
    assert first[0] == "✗ Layer 2 is dead since epoch 5 (mostly since epoch 3): all 64 nodes never fire."
    row = next(line for line in first if line.startswith("  2 "))
    assert row.split() == [
        "2",
        "·",
        "░░░░░",
        "▓▓▓▓▓",
        "█████",
        "█████",
        "█████",
        "█████",
        "█████",
        "64/64",
        "since",
        "epoch",
        "5",
    ]
    loss = next(line for line in first if line.startswith("  loss"))
    assert loss.split() == ["loss", "1.93", "1.12", "2.20", "2.29", "2.30", "2.30", "2.30", "2.30", "2.30"]
    todo = first.index("  What to do")
    assert first[todo + 1] == "  → Go back to epoch 2, the last before this, and train on with a smaller"
    assert first[todo + 3] == "  → Reinitialise all 64 nodes of layer 2: dead on all 1,000 samples"
    assert HINTS[0] in first[todo + 5]


def test_the_last_checkpoint_and_the_notable_ones_are_shown_in_full() -> None:
    def full(verbose: bool) -> list[str]:
        text = render_text(synthetic.dying(), verbose=verbose)
        return re.findall(r"^epoch_(\d+)\.safetensors .*─$", text, re.M)

    assert full(False) == ["003", "008"]
    assert full(True) == [f"{epoch:03}" for epoch in range(1, 9)]


def test_findings_are_folded_under_causes_and_causes_name_their_nodes() -> None:
    text = " ".join(render_text(synthetic.dying()).split())
    assert "✗ error ND201 dead, layer 2: all 64 nodes never fires on any of the 1,000 samples" in text
    assert "hence ND204 dormant, ND252 layer-degenerate (error), ND301 no-gradient, ND401 plateau" in text
    assert "ND201 dead, layer 0: 5 of 64 nodes (0, 7, 14, 21, 28)" in text


def test_notes_are_counted_unless_asked_for() -> None:
    assert "5 notes (--verbose)" in render_text(synthetic.cnn())
    assert "ND205" not in render_text(synthetic.cnn())
    assert "• info    ND205 always-on, layer3.2.conv1: 5 of 64 nodes (0–4)" in render_text(
        synthetic.cnn(), verbose=True
    )


def test_healthy_layers_of_a_deep_network_are_folded_unless_asked_for() -> None:
    text = render_text(synthetic.deep())
    assert re.findall(r"… (\d+) healthy layers", text) == ["7", "60", "60", "60", "9"]
    assert len(re.findall(r"^  blocks\.\d+\.mlp\.fc1 ", text, re.M)) == 4
    assert (
        len(re.findall(r"^  blocks\.\d+\.mlp\.fc1 ", render_text(synthetic.deep(), verbose=True), re.M))
        == 200
    )


def test_layers_that_were_not_judged_are_not_folded_as_healthy() -> None:
    text = render_text(report(diagnosis([layer(str(i), 4, unknown=4) for i in range(50)], level="weights")))
    assert "… 50 more layers without findings" in text
    assert "healthy" not in text


def test_a_long_run_is_thinned_and_keeps_both_ends() -> None:
    text = render_text(synthetic.long_run())
    ruler = next(line for line in text.splitlines() if line.startswith("  epoch ") and line.endswith("end"))
    assert ruler.split()[1] == "0"
    assert ruler.split()[-4:] == ["119", "at", "the", "end"]
    assert "… 118 checkpoints" in text


def test_a_single_healthy_checkpoint_says_so_in_one_line() -> None:
    text = render_text(synthetic.healthy(), width=120)
    assert text.splitlines()[0] == (
        "✓ Nothing is wrong: all 138 nodes of 3 layers are healthy on 1,000 samples (level: curvature)."
    )
    assert "Findings" not in text
    assert "What to do" not in text


def test_the_header_says_what_the_numbers_rest_on() -> None:
    one = synthetic.dying().checkpoints[-1]
    loose = one.model_copy(
        update={"curvature": one.curvature.model_copy(update={"coverage": 0.97, "converged": False})}
    )
    text = render_text(report(loose), width=120)
    assert "loss 2.30 (cross_entropy) · gradient norm 0.0123 · on 1,000 samples" in text
    assert "Hessian by lanczos, 97 % of the trace exact, the rest by random signs, not converged" in text


def test_parameters_that_were_not_measured_are_named() -> None:
    assert "not measured: pos_embed (used as a raw parameter)" in render_text(synthetic.cnn())


def test_a_reason_is_said_once() -> None:
    left_out = [Unmeasured(name=f"p{i}", reason="it mixes samples") for i in range(5)]
    left_out.append(Unmeasured(name="q", reason="it is empty"))
    made = report(diagnosis([layer("0", 9)], unmeasured=left_out))
    line = "ot measured: p0, p1, p2, 2 more (it mixes samples); q (it is empty)"
    assert line in render_text(made)
    assert line in render_markdown(made)


def embedding(unused: int) -> Report:
    one = layer("embed", 60, "Embedding", unknown=unused).model_copy(update={"unobserved": unused})
    return report(diagnosis([one, layer("head", 4)]))


def test_rows_that_the_probe_never_used_are_counted_and_no_trouble() -> None:
    text = " ".join(render_text(embedding(6)).split())
    assert "✓ Nothing is wrong: all 58 nodes that the probe uses are healthy on 1,000 samples" in text
    assert "54 ok 6 unused" in text
    assert "unused: 6 of 60 rows of embed (never looked up by the probe, or padding)" in text
    assert "| 54 healthy, 6 unused |" in render_markdown(embedding(6))
    assert "unused" not in render_text(embedding(0)) + render_markdown(embedding(0))


def test_outputs_of_classes_that_the_probe_lacks_are_not_observed() -> None:
    states = EveryNode(states="hhuhhhhuhh", parameter_norm="", weight_norm="")
    head = layer("head", 10, unknown=2, measures={"absent_classes": 2.0}).model_copy(
        update={"unobserved": 2, "every_node": states}
    )
    made = report(diagnosis([layer("0", 4), head]))
    text = " ".join(render_text(made).split())
    assert "8 ok 2 not observed" in text
    assert "not observed: outputs 2, 7 of head (the probe has no sample of their classes)" in text
    assert "8 healthy, 2 not observed" in render_markdown(made)
    assert "unused" not in text


def test_other_nodes_of_no_verdict_are_still_said_to_be_unknown() -> None:
    one = layer("embed", 60, "Embedding", unknown=8).model_copy(update={"unobserved": 6})
    text = " ".join(render_text(report(diagnosis([one]))).split())
    assert "but only 52 of 60 nodes could be judged" in text
    assert "52 ok 2 unknown 6 unused" in text


def test_layers_left_out_have_a_row_in_a_deep_network_too() -> None:
    layers = [layer(f"block{i}", 8) for i in range(40)]
    layers[20] = layer("pos", 8, "Embedding", unknown=8)
    made = report(diagnosis(layers, unmeasured=[Unmeasured(name="pos", reason="why")]))
    text = render_text(made)
    assert re.findall(r"^  … (\d+) healthy layers", text, re.M) == ["20", "19"]
    assert re.search(r"^  pos +Embed +8 +\?+ +8 unknown", text, re.M)


def test_columns_are_explained_once_and_only_those_there_are() -> None:
    text = render_text(synthetic.cnn(), width=120)
    assert text.count("eff. rank: dimensions that the outputs span") == 1
    assert "dormant:" not in text
    assert "dormant:" not in render_markdown(synthetic.cnn())
    assert render_markdown(synthetic.cnn()).count("eff. rank: dimensions that the outputs span") == 1


def test_a_measure_of_hardly_any_layer_gives_way() -> None:
    layers = [layer(str(i), 8, measures={"effective_rank": 3.0, "lambda_max_median": 1.0}) for i in range(8)]
    layers[0] = layer("0", 8, measures={"dead_data_fraction": 0.0})
    text = render_text(report(diagnosis(layers)), width=60)
    assert "eff. rank:" in text
    assert "dead data:" not in text


def test_the_margin_of_the_optimiser_and_what_was_refined() -> None:
    sharp = layer("0", 9, measures={"stability_margin_max": 0.25})
    made = diagnosis([sharp, layer("1", 9, measures={"stability_margin_max": 0.01}), layer("2", 2)],
                     optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.05})  # fmt: skip
    mixed = {"kind": "mixed", "hessian_nodes": 5, "ggn_nodes": 15, "stability_threshold": 38000.0}
    made = made.model_copy(update={"curvature": made.curvature.model_copy(update=mixed)})
    text = render_text(report(made), width=120)
    assert "Hessian of 5 nodes, Gauss-Newton of the other 15 by lanczos" in text
    assert "adamw, lr 0.001, decay 0.05" in text
    assert "sharpest node at 25 % of the stability threshold (at λ 38,000, preconditioned)" in text
    signs = made.model_copy(update={"curvature": made.curvature.model_copy(update={"coverage": 0.0})})
    assert "by lanczos, by random signs" in render_text(report(signs), width=120)


def test_kinds_are_called_what_people_call_them() -> None:
    made = report(
        diagnosis([layer("0", 9, "MultiheadAttention"), layer("1", 9, "NonDynamicallyQuantizableLinear")])
    )
    text = render_text(made, width=120) + render_markdown(made)
    assert text.count("Attention") == text.count("Linear") == 2
    assert "Quantizable" not in text


def test_nodes_whose_verdict_differs_between_folds_are_said_to_be_unsteady() -> None:
    shaky = node("0", 1, findings=dead(9)).model_copy(update={"steady": False})
    made = report(diagnosis([layer("0", 9, plateau=2)], [node("0", 0, findings=dead(9)), shaky]))
    shown = " ".join(render_text(made).split())
    assert "layer 0: 2 of 9 nodes (0–1), 1 of them unsteady" in shown
    assert "1 of them unsteady" in render_markdown(made)


def test_reasons_that_differ_are_counted() -> None:
    nodes = [node("0", i, findings=dead(9), reason=f"reason {i % 3}") for i in range(4)]
    text = " ".join(render_text(report(diagnosis([layer("0", 9, plateau=4)], nodes))).split())
    assert "Reinitialise 4 nodes of layer 0: 2 reason 0; 1 reason 1; 1 for other reasons" in text
