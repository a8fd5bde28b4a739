"""Healing checkpoints as library users do: what is written, what is promised, and what is refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nndiag
from nndiag.errors import InputError, UsageError
from nndiag.pipeline import HealSettings, ScanSettings, curing_for_training, heal
from nndiag.records.healing import Healing
from nndiag.records.level import Level
from nndiag.remedies.plan import Treatment
from nndiag.surgery.training import treating
from nndiag.surgery.training.record import Left, Treated
from nndiag.surgery.training.trial import Limit
from nndiag.surgery.training.ward import Ward

SAMPLES = Path(__file__).parents[2] / "sample_checkpoints"
DYING = SAMPLES / "dying_mlp" / "epoch_12.safetensors"
TRAIN, DEPLOY = HealSettings("train"), HealSettings("deploy")


def dying() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def loaded(file: Path) -> nn.Sequential:
    model = dying()
    model.load_state_dict(load_file(file))
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Healing]:
    new = tmp_path_factory.mktemp("healed") / "new.safetensors"
    return new, heal(DYING, new, TRAIN)


def test_a_network_with_a_dead_layer_has_no_dead_node_left(trained: tuple[Path, Healing]) -> None:
    _, found = trained
    assert Counter(action.layer for action in found.actions) == {"0": 37, "2": 43, "4": 32}
    assert {action.promise for action in found.actions} == {"unchanged"}
    assert found.findings_before["ND201"] == 89
    assert "ND201" not in found.findings_after
    assert "ND252" not in found.findings_after


def test_its_function_is_the_same_by_the_files_alone(trained: tuple[Path, Healing]) -> None:
    new, found = trained
    x = load_file(SAMPLES / "dying_mlp" / "probe.safetensors")["x"]
    with torch.no_grad():
        before, after = loaded(DYING)(x), loaded(new)(x)
    change = float((after - before).abs().max() / before.abs().max())
    assert change <= 1e-6
    assert found.output_change == pytest.approx(change, rel=1e-3)
    assert found.loss_after == pytest.approx(found.loss_before, rel=1e-6)


def test_every_node_started_anew_fires_and_gets_a_gradient_by_the_file_alone(
    trained: tuple[Path, Healing],
) -> None:
    new, found = trained
    probe = load_file(SAMPLES / "dying_mlp" / "probe.safetensors")
    model = loaded(new)
    nn.functional.cross_entropy(model(probe["x"]), probe["y"]).backward()
    for action in found.actions:
        place = int(action.layer)
        with torch.no_grad():
            fires = model[: place + 2](probe["x"])[:, action.index] > 0
        assert fires.any()
        assert model[place].weight.grad[action.index].any()
        assert model[place + 2].weight.grad[:, action.index].any()
        assert action.gradient_before == 0
        assert action.gradient_after is not None
        assert action.gradient_after > 0
        assert action.outgoing_gradient_after is not None
        assert action.outgoing_gradient_after > 0


def test_what_was_done_stands_beside_it(trained: tuple[Path, Healing]) -> None:
    new, found = trained
    said = json.loads(new.with_name("new.safetensors.heal.json").read_text())
    assert list(said)[:4] == ["schema_version", "nndiag_version", "goal", "source"]
    wanted = {
        "goal",
        "actions",
        "loss_before",
        "loss_after",
        "output_change",
        "parameters_before",
        "parameters_after",
    }
    assert wanted <= said.keys()
    assert {"layer", "index", "code", "kind", "detail"} <= said["actions"][0].keys()
    assert len(said["actions"]) == len(found.actions) == 112
    assert said["parameters_before"] == said["parameters_after"] == 10_730


def test_healing_twice_is_healing_once(trained: tuple[Path, Healing], tmp_path: Path) -> None:
    new, _ = trained
    for name in ("nndiag.toml", "probe.safetensors"):
        shutil.copy(SAMPLES / "dying_mlp" / name, tmp_path)
    again = tmp_path / "again.safetensors"
    shutil.copy(new, tmp_path / "new.safetensors")
    found = heal(tmp_path / "new.safetensors", again, TRAIN)
    assert not found.actions
    assert again.read_bytes() == new.read_bytes()


def test_healing_twice_is_healing_once_where_the_loss_was_measured_too(tmp_path: Path) -> None:
    for name in ("nndiag.toml", "probe.safetensors", "epoch_010.safetensors"):
        shutil.copy(SAMPLES / "diverging" / name, tmp_path)
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    found = heal(tmp_path / "epoch_010.safetensors", once, TRAIN)
    assert {action.promise for action in found.actions} == {"unchanged", "measured"}
    assert found.loss_before is not None
    assert found.loss_after is not None
    assert found.loss_after <= 1.01 * found.loss_before
    again = heal(once, twice, TRAIN)
    assert again.actions == ()
    assert twice.read_bytes() == once.read_bytes()


def test_the_same_seed_writes_the_same_bytes_and_another_one_others(
    trained: tuple[Path, Healing], tmp_path: Path
) -> None:
    new, _ = trained
    heal(DYING, tmp_path / "same.safetensors", TRAIN)
    assert (tmp_path / "same.safetensors").read_bytes() == new.read_bytes()
    heal(DYING, tmp_path / "other.safetensors", HealSettings("train", ScanSettings(seed=1)))
    assert (tmp_path / "other.safetensors").read_bytes() != new.read_bytes()


def test_a_healthy_network_is_written_as_it_is(tmp_path: Path) -> None:
    source = SAMPLES / "small_cnn_bn" / "epoch_06.safetensors"
    found = heal(source, tmp_path / "new.safetensors", TRAIN)
    assert (found.actions, found.left, found.suggestions) == ((), (), ())
    assert (tmp_path / "new.safetensors").read_bytes() == source.read_bytes()
    assert (found.loss_after, found.output_change) == (found.loss_before, 0.0)


def test_a_dry_run_says_the_same_and_writes_nothing(trained: tuple[Path, Healing], tmp_path: Path) -> None:
    _, found = trained
    planned = heal(DYING, tmp_path / "new.safetensors", HealSettings("train", dry_run=True))
    assert planned.written is None
    assert planned.actions == found.actions
    assert list(tmp_path.iterdir()) == []


def test_codes_and_layers_narrow_it_down(tmp_path: Path) -> None:
    settings = HealSettings("train", only=("ND201",), layers=("0", "4"), dry_run=True)
    found = heal(DYING, None, settings)
    assert Counter((action.layer, action.code) for action in found.actions) == {
        ("0", "ND201"): 24,
        ("4", "ND201"): 32,
    }


def test_a_pattern_that_fits_no_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layers 44: no layer of the network fits it; name some, such as"):
        heal(DYING, tmp_path / "new.safetensors", HealSettings("train", layers=("0", "44")))
    assert not list(tmp_path.iterdir())


def test_sources_are_given_a_rate(tmp_path: Path) -> None:
    found = heal(SAMPLES / "diverging" / "epoch_010.safetensors", None, HealSettings("train", dry_run=True))
    (one,) = [suggestion for suggestion in found.suggestions if suggestion.code == "ND402"]
    assert one.lr is not None
    assert one.largest_stable_lr is not None
    assert one.lr < one.largest_stable_lr < 0.4
    assert found.snippet is not None
    compile(found.snippet, "snippet", "exec")


def drowned(folder: Path) -> Path:
    """Write a network in which one unit is so loud that all others are dormant beside it, however they start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].bias[0] = 1e4
    save_file(model.state_dict(), folder / "net.safetensors")
    save_file({"x": torch.randn(60, 5)}, folder / "x.safetensors")
    (folder / "nndiag.toml").write_text(
        '[model]\nsequential = [["Linear", 5, 12], ["GELU"], ["Linear", 12, 3]]\n[probe]\ndata = "x.safetensors"\n'
    )
    return folder / "net.safetensors"


def test_what_changed_the_function_once_is_never_said_to_have_kept_it(tmp_path: Path) -> None:
    found = heal(drowned(tmp_path), tmp_path / "new.safetensors", TRAIN)
    assert found.output_change is not None
    assert 1e-6 < found.output_change <= 0.01
    assert {(action.code, action.promise) for action in found.actions} == {("ND204", "measured")}


def test_what_was_left_is_said_also_where_a_round_came_after_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stream, self.inside = torch.nn.Linear(5, 8), torch.nn.Linear(8, 6)\n"
        "        self.back, self.out = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)\n"
        "    def forward(self, x):\n"
        "        x = self.stream(x)\n"
        "        return self.out(x + self.back(torch.relu(self.inside(x))))\n"
    )
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "stream": nn.Linear(5, 8),
            "inside": nn.Linear(8, 6),
            "back": nn.Linear(6, 8),
            "out": nn.Linear(8, 3),
        }
    )
    with torch.no_grad():
        model["stream"].weight[2], model["stream"].bias[2] = 0.0, 0.0
        model["inside"].bias[1] = -100.0
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    probe = {"x": torch.randn(60, 5), "y": torch.randint(3, (60,))}
    save_file(probe, tmp_path / "probe.safetensors")
    scan = ScanSettings(
        model=f"{tmp_path / 'net.py'}:Net",
        data=str(tmp_path / "probe.safetensors"),
        loss="cross_entropy",
        trust=True,
    )
    once = heal(tmp_path / "net.safetensors", tmp_path / "once.safetensors", HealSettings("train", scan))
    assert [(action.layer, action.index) for action in once.actions] == [("inside", 1)]
    assert [(left.layer, left.index) for left in once.left] == [("stream", 2)]
    twice = heal(tmp_path / "once.safetensors", tmp_path / "twice.safetensors", HealSettings("train", scan))
    assert (twice.actions, twice.left[:1]) == ((), once.left)
    waiting = [(left.layer, left.index, left.kind) for left in twice.left[1:]]
    assert waiting == [("inside", 1, "raise_lr")]  # no rate mends it: training has to make it heard first
    assert not twice.suggestions


def test_what_only_a_deeper_look_shows_is_still_left_and_what_a_later_one_lacks_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    treat = curing_for_training.treat

    def leaving(ward: Ward, wanted: Sequence[Treatment], limit: Limit) -> Treated:
        found = treat(ward, wanted, limit)
        codes = ("ND204", "ND401") if ward.attempt == 0 else ()
        more = [Left(Treatment("6", i, code, "reinitialise", "…"), "so") for i, code in enumerate(codes)]
        return replace(found, left=(*found.left, *more))

    monkeypatch.setattr(curing_for_training, "treat", leaving)
    found = heal(DYING.with_name("epoch_04.safetensors"), None, replace(TRAIN, dry_run=True))
    assert found.actions
    assert [(one.layer, one.index, one.code) for one in found.left] == [("6", 1, "ND401")]


def test_taking_out_leaves_the_outputs_and_nothing_dead(tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    found = heal(DYING, new, DEPLOY)
    assert found.output_change is not None
    assert found.output_change <= 1e-6
    assert found.parameters_after < found.parameters_before / 3
    assert "ND201" not in found.findings_after
    report = nndiag.scan(new, ScanSettings(data=str(SAMPLES / "dying_mlp" / "probe.safetensors"))).report
    (seen,) = report.checkpoints
    assert seen.checkpoint.parameters == found.parameters_after
    codes = {finding.code for node in seen.nodes for finding in node.findings}
    assert "ND201" not in codes
    assert seen.model.loss == pytest.approx(found.loss_before, rel=1e-6)
    assert "sequential" in (tmp_path / "nndiag.toml").read_text()


def test_the_tables_of_a_smaller_network_are_read_again_whatever_its_files_are_called(tmp_path: Path) -> None:
    text = (DYING.parent / "nndiag.toml").read_text("utf-8")
    (tmp_path / "nndiag.toml").write_text(
        text.replace("probe.safetensors", "probe 😀.safetensors"), encoding="utf-8"
    )
    shutil.copy(DYING.parent / "probe.safetensors", tmp_path / "probe 😀.safetensors")
    shutil.copy(DYING, tmp_path / "old.safetensors")
    heal(tmp_path / "old.safetensors", tmp_path / "new\n[rules].safetensors", DEPLOY)
    made = tmp_path / "new\n[rules].safetensors.toml"
    written = tomllib.loads(made.read_text("utf-8"))
    assert written["model"]["sequential"][1] == ["ReLU"]
    assert written["probe"] == {"data": "probe 😀.safetensors", "loss": "cross_entropy"}
    assert written["optimizer"] == {"name": "sgd", "lr": 0.18, "momentum": 0.9}
    assert written.keys() == {"model", "probe", "optimizer"}


def test_nodes_keep_their_numbers_over_the_rounds_of_taking_out(tmp_path: Path) -> None:
    found = heal(DYING, tmp_path / "new.safetensors", DEPLOY)
    nodes = [(action.layer, action.index) for action in found.actions]
    assert len(set(nodes)) == len(nodes)
    x = load_file(SAMPLES / "dying_mlp" / "probe.safetensors")["x"]
    with torch.no_grad():
        dead = {i for i, fires in enumerate((loaded(DYING)[:2](x) > 0).any(dim=0).tolist()) if not fires}
    assert dead <= {index for layer, index in nodes if layer == "0"}


def broken(tmp_path: Path) -> Path:
    for name in ("nndiag.toml", "probe.safetensors"):
        shutil.copy(SAMPLES / "healthy_mlp" / name, tmp_path)
    tensors = load_file(SAMPLES / "healthy_mlp" / "epoch_08.safetensors")
    tensors["0.weight"][3, 5] = float("nan")
    tensors["2.bias"][7] = float("inf")
    save_file(tensors, tmp_path / "epoch_09.safetensors")
    return tmp_path / "epoch_09.safetensors"


def test_a_network_that_is_not_finite_is_afterwards_and_then_treated_like_any_other(tmp_path: Path) -> None:
    found = heal(broken(tmp_path), tmp_path / "new.safetensors", TRAIN)
    assert {(a.layer, a.index) for a in found.actions if a.promise == "finite"} == {("0", 3), ("2", 7)}
    assert found.loss_before is None or not np.isfinite(found.loss_before)
    assert found.loss_after is not None
    assert found.loss_after < 0.5
    assert "ND101" not in found.findings_after
    assert all(t.isfinite().all() for t in load_file(tmp_path / "new.safetensors").values())


def test_nothing_can_be_taken_out_of_what_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finite"):
        heal(broken(tmp_path), tmp_path / "new.safetensors", DEPLOY)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_result_that_is_worse_than_promised_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = treating.reinitialise

    def careless(ward, restarts, heard, whisper=0.0) -> None:  # type: ignore[no-untyped-def]
        true(ward, restarts, heard, whisper)
        bias: Tensor = ward.tensors()["6.bias"]
        bias += 0.1

    monkeypatch.setattr(treating, "reinitialise", careless)
    with pytest.raises(InputError, match="should keep the function"):
        heal(DYING, tmp_path / "new.safetensors", TRAIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"initialiser": "nonsense"}, "--init nonsense"),
        ({"max_loss_increase": -1.0}, "--max-loss-increase"),
        ({"only": ("ND201", "ND9")}, "--only ND9"),
    ],
)
def test_settings_are_checked_when_they_are_made(options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        HealSettings("train", **options)  # type: ignore[arg-type]


def test_the_initialiser_may_stand_in_the_configuration(tmp_path: Path) -> None:
    for name in ("epoch_12.safetensors", "probe.safetensors"):
        shutil.copy(DYING.parent / name, tmp_path / name)
    written = (DYING.parent / "nndiag.toml").read_text()
    source, quick = tmp_path / "epoch_12.safetensors", ScanSettings(level=Level.ACTIVATIONS)

    def healed(name: str, said: str, **options: str) -> dict[str, Tensor]:
        (tmp_path / "nndiag.toml").write_text(f"{written}\n[actions]\n{said}\n")
        heal(source, tmp_path / name, HealSettings("train", quick, **options))  # type: ignore[arg-type]
        return load_file(tmp_path / name)

    by_file = healed("one.safetensors", 'init = "orthogonal"')
    by_option = healed("two.safetensors", 'init = "xavier_normal"', initialiser="orthogonal")
    other = healed("three.safetensors", 'goal = "deploy"')
    assert all(torch.equal(by_file[name], by_option[name]) for name in by_file)
    assert not torch.equal(by_file["0.weight"], other["0.weight"])
    with pytest.raises(
        UsageError, match=r"nndiag\.toml \[actions\]: init = magic: there is no such initialiser"
    ):
        healed("four.safetensors", 'init = "magic"')


def test_weights_alone_cannot_be_healed_and_what_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copy(DYING, tmp_path / "alone.safetensors")
    with pytest.raises(UsageError, match="without the model nothing can be proved; add --model"):
        heal(tmp_path / "alone.safetensors", tmp_path / "new.safetensors", TRAIN)


def test_one_checkpoint_is_healed_and_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="13 checkpoints, and one is healed"):
        heal(DYING.parent, tmp_path / "new.safetensors", TRAIN)


def test_without_a_target_only_a_dry_run_is_possible() -> None:
    with pytest.raises(UsageError, match="--out: it is missing"):
        heal(DYING, None, TRAIN)
