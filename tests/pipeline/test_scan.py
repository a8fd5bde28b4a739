"""``nndiag.scan`` for library users: defaults, listener, errors as exceptions, nothing printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nndiag
from nndiag.errors import InputError, ModelError, UsageError
from nndiag.pipeline.listener import Notes
from nndiag.records.level import Level

CONFIGURATION = """
[model]
sequential = [["Linear", 4, 8], ["ReLU"], ["Linear", 8, 3]]
[probe]
data = "probe.safetensors"
loss = "cross_entropy"
"""


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.news: list[tuple[str, float]] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def progress(self, what: str, share: float) -> None:
        self.news.append((what, share))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "nndiag.toml").write_text(CONFIGURATION)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator)
    save_file({"x": x, "y": torch.arange(12) % 3}, folder / "probe.safetensors")
    for epoch in range(2):
        torch.manual_seed(epoch)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        save_file(dict(net.state_dict()), folder / f"epoch_{epoch}.safetensors")
    return folder


def test_defaults(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = nndiag.scan(run)
    assert [found.level for found in outcome.report.checkpoints] == ["curvature", "curvature"]
    assert outcome.files == (run / "epoch_0.safetensors", run / "epoch_1.safetensors")
    assert outcome.hints == ()
    assert capfd.readouterr() == ("", "")
    listed = nndiag.scan([str(run)], nndiag.ScanSettings())
    assert [d.layers for d in listed.report.checkpoints] == [d.layers for d in outcome.report.checkpoints]


def test_settings_and_listener(run: Path) -> None:
    heard = Heard()
    settings = nndiag.ScanSettings(level=Level.ACTIVATIONS, last=1, limit=5)
    outcome = nndiag.scan([run], settings, heard)
    (found,) = outcome.report.checkpoints
    assert found.level == "activations"
    assert found.probe is not None
    assert found.probe.samples == 5
    assert outcome.hints == ("leave out --level activations to look as deep as curvature",)


def test_progress_rises_from_nothing_to_all(run: Path) -> None:
    for level in Level:
        heard = Heard()
        nndiag.scan(run, nndiag.ScanSettings(level=level, batch_size=5), heard)
        shares = [share for _, share in heard.news]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0.0, 1.0)
        assert heard.news[0][0] == "checkpoint 1 of 2: reading"


def test_nothing_global_is_left_behind(run: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    nndiag.scan(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[model]\nsequential = [['Linear', 4, 9], ['ReLU'], ['Linear', 9, 3]]\n", ModelError),
        ("[probe]\ndata = 'gone.npz'\n", InputError),
        ("[probe]\ndta = 'probe.safetensors'\n", UsageError),
    ],
)
def test_errors_are_exceptions(run: Path, content: str, kind: type[Exception]) -> None:
    (run / "nndiag.toml").write_text(content)
    with pytest.raises(kind) as caught:
        nndiag.scan(run)
    assert type(caught.value) is kind


def test_no_path(run: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint is given"):
        nndiag.scan([])


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0}, {"batch_size": 0}, {"folds": 0}, {"every": 0}, {"last": 0}, {"seed": -1}, {"lr": -0.1},
        {"lr": float("nan")}, {"momentum": float("inf")}, {"betas": (0.9, 1.0)}, {"solver": "magic"},
        {"curvature": "x"}, {"dtype": "int8"}, {"goal": "x"}, {"optimizer": "x"},
    ],
)  # fmt: skip
def test_settings_are_checked_when_made(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        nndiag.ScanSettings(**wrong)


def test_options_win_over_the_run_and_the_run_over_the_checkpoint(run: Path) -> None:
    text = CONFIGURATION + '[optimizer]\nname = "sgd"\nlr = 0.5\nmomentum = 0.9\n[actions]\ngoal = "deploy"\n'
    (run / "nndiag.toml").write_text(text)
    (found,) = nndiag.scan(run / "epoch_0.safetensors", nndiag.ScanSettings(lr=0.25)).report.checkpoints
    assert found.checkpoint.optimizer == {
        "name": "sgd", "lr": 0.25, "momentum": 0.9, "source": "options",
    }  # fmt: skip


def test_notes_are_said_once_and_those_of_checkpoints_together() -> None:
    heard = Heard()
    notes = Notes(heard)
    for name in "abcdef":
        notes.say("taken from model")
        notes.say("")
        notes.say_of(name, "not finite")
    notes.say_of("b", "odd")
    notes.close()
    assert heard.notes == ["taken from model", "a, b, c and 3 more: not finite", "b: odd"]


@pytest.mark.parametrize(("wanted", "kind"), [("auto", "hessian"), ("ggn", "ggn"), ("hessian", "hessian")])
def test_the_curvature_is_of_the_kind_asked_for(run: Path, wanted: str, kind: str) -> None:
    found = nndiag.scan(run, nndiag.ScanSettings(curvature=wanted, all_nodes=True)).report.checkpoints[-1]
    assert found.curvature is not None
    assert found.curvature.kind == kind
    assert {node.curvature_kind for node in found.nodes} == {kind}


def test_the_kind_of_curvature_is_the_one_asked_for(run: Path) -> None:
    (run / "nndiag.toml").write_text(CONFIGURATION.replace("ReLU", "Tanh"))
    kinds = {}
    for wanted in ("auto", "ggn", "hessian"):
        found = nndiag.scan(run, nndiag.ScanSettings(curvature=wanted, all_nodes=True)).report.checkpoints[-1]
        assert found.curvature is not None
        kinds[wanted] = (found.curvature.kind, {node.curvature_kind for node in found.nodes})
    assert kinds == {
        "auto": ("hessian", {"hessian"}),
        "ggn": ("ggn", {"ggn"}),
        "hessian": ("hessian", {"hessian"}),
    }


def test_a_loss_that_needs_targets_for_its_curvature_is_measured_without(run: Path) -> None:
    (run / "loss.py").write_text(
        "def loss(output, targets):\n    return (output - targets).abs().sum(dim=1)\n"
    )
    save_file({"x": torch.randn(12, 4)}, run / "inputs.safetensors")
    settings = nndiag.ScanSettings(
        data=str(run / "inputs.safetensors"), loss=f"{run / 'loss.py'}:loss", all_nodes=True
    )
    outcome = nndiag.scan(run, settings)
    found = outcome.report.checkpoints[-1]
    assert found.level == "gradients"
    assert "influence" in found.nodes[0].measures
    assert "gradient_norm" not in found.nodes[0].measures
    assert outcome.hints == ("add targets y to the data to see curvature",)


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.embed(x)).mean(dim=1))
"""


def test_what_the_probe_never_used_has_its_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    scope: dict[str, type[nn.Module]] = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    save_file(dict(scope["Net"]().state_dict()), tmp_path / "net.safetensors")
    ids = torch.randint(0, 7, (24, 5), generator=torch.Generator().manual_seed(0))
    save_file({"x": ids, "y": torch.arange(24) % 3}, tmp_path / "data.safetensors")
    settings = nndiag.ScanSettings(
        model="net.py:Net", data="data.safetensors", loss="cross_entropy", all_nodes=True, optimizer="sgd",
        lr=1e-3,
    )  # fmt: skip
    (found,) = nndiag.scan("net.safetensors", settings).report.checkpoints
    layers = {layer.name: layer for layer in found.layers}
    rows = {node.index: node for node in found.nodes if node.layer == "embed"}
    assert layers["embed"].unobserved == layers["embed"].verdicts["unknown"] == 2
    for index in (7, 8):
        assert rows[index].measures.keys() == {
            "weight_norm", "parameter_norm", "nonfinite_parameters", "lookups",
        }  # fmt: skip
        assert rows[index].measures["lookups"] == 0
        assert (rows[index].verdict, rows[index].curvature_kind) == ("unknown", None)
        assert rows[index].action.kind == "none"
    assert {"lambda_max", "gradient_norm", "lookups"} <= rows[0].measures.keys()
    assert rows[0].curvature_kind == layers["embed"].curvature_kind

    channels = [node for node in found.nodes if node.layer == "norm"]
    assert all("torque_ratio" not in node.measures for node in channels)
    assert "torque_ratio_p10" not in layers["norm"].measures
    assert "torque_ratio_p10" in layers["head"].measures
    margins = [node.measures["stability_margin"] for node in channels]
    assert layers["norm"].measures["stability_margin_max"] == max(margins)
    assert found.curvature is not None
    assert found.curvature.stability_threshold == pytest.approx(2 / 1e-3)
    assert found.curvature.hessian_nodes + found.curvature.ggn_nodes == 7 + 4 + 3
