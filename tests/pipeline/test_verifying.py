"""``--verify``: every recommended action is tried on the probe, and what it did stands in the document."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nndiag
from nndiag.errors import UsageError
from nndiag.pipeline.in_memory import probe_of
from nndiag.pipeline.treating import moves_alone
from nndiag.pipeline.verifying import verified
from nndiag.records.level import Level
from nndiag.records.report import Action, Diagnosis, Finding
from nndiag.report.terminal import render_text

ROOT = Path(__file__).parents[2] / "sample_checkpoints"

CONFIG = """
[model]
sequential = [["Linear", 6, 10], ["ReLU"], ["Linear", 10, 8], ["ReLU"], ["Linear", 8, 3]]
[probe]
data = "probe.safetensors"
loss = "cross_entropy"
"""


def network() -> nn.Sequential:
    """Dead, repeated and healthy units."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[:3] = -100.0
        for parameter in (net[2].weight, net[2].bias):
            parameter[5] = 2 * parameter[1]
        net[2].bias[1] += 1.0
        net[2].bias[5] += 2.0
    return net


def probe() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(300, 6, generator=generator), torch.randint(0, 3, (300,), generator=generator)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "nndiag.toml").write_text(CONFIG)
    x, y = probe()
    save_file({"x": x, "y": y}, tmp_path / "probe.safetensors")
    save_file(dict(network().state_dict()), tmp_path / "net.safetensors")
    return tmp_path


def scanned(run: Path, **options: object) -> Diagnosis:
    settings = nndiag.ScanSettings(verify=True, **options)  # type: ignore[arg-type]
    return nndiag.scan(run / "net.safetensors", settings).report.checkpoints[0]


def loss_of(net: nn.Sequential) -> float:
    x, y = probe()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(x), y))


def test_every_action_that_replaces_a_unit_is_tried(run: Path) -> None:
    found = scanned(run, goal="deploy")
    kinds = {(n.layer, n.index): n.action.kind for n in found.nodes if n.action.kind != "none"}
    assert (
        kinds.items() >= {("0", 0): "prune", ("0", 1): "prune", ("0", 2): "prune", ("2", 5): "merge"}.items()
    )
    assert set(kinds.values()) == {"prune", "merge"}
    for node in found.nodes:
        if node.action.kind == "none":
            assert node.action.verified is None
            continue
        assert node.action.verified is not None
        assert node.action.verified["loss_before"] == pytest.approx(loss_of(network()), rel=1e-6)
        assert node.action.verified["loss_after"] == pytest.approx(loss_of(network()), rel=1e-5)
        assert node.action.verified["output_change"] == pytest.approx(0, abs=1e-6)
        assert "gradient_before" in node.action.verified
    assert found.model.verified is not None
    assert found.model.verified["actions"] == len(kinds)
    assert found.model.verified["output_change"] == pytest.approx(0, abs=1e-6)


def test_units_that_matter_show_what_taking_them_out_costs() -> None:
    settings = nndiag.ScanSettings(verify=True, goal="deploy")
    report = nndiag.scan(ROOT / "dying_mlp" / "epoch_06.safetensors", settings).report
    weights = load_file(ROOT / "dying_mlp" / "epoch_06.safetensors")
    data = load_file(ROOT / "dying_mlp" / "probe.safetensors")

    def loss(without: int | None) -> float:
        hidden = data["x"]
        for layer in ("0", "2", "4"):
            hidden = torch.relu(hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
            if layer == "0" and without is not None:
                hidden[:, without] = hidden[:, without].mean()
        last = hidden @ weights["6.weight"].T + weights["6.bias"]
        return float(nn.functional.cross_entropy(last, data["y"]))

    tried = [n for n in report.checkpoints[0].nodes if n.layer == "0" and n.action.kind == "prune"]
    changes = []
    for node in tried:
        assert node.action.verified is not None
        assert node.action.verified["loss_after"] == pytest.approx(loss(node.index), rel=1e-5)
        changes.append(node.action.verified["output_change"])
    assert any(change > 1e-4 for change in changes)
    assert any(change == 0 for change in changes)


def test_the_screen_says_by_how_much_outputs_change() -> None:
    settings = nndiag.ScanSettings(verify=True, goal="deploy")
    report = nndiag.scan(ROOT / "dying_mlp" / "epoch_06.safetensors", settings).report
    words = " ".join(render_text(report, width=300).split())
    assert "(tried on the probe: the outputs stay as they are)" in words
    assert "(tried on the probe, each alone: outputs change by less than 0.1 %)" in words
    assert "actions together: loss 2.32 → 2.32, outputs change by less than 0.1 %" in words


def test_without_the_option_nothing_is_tried(run: Path) -> None:
    found = nndiag.scan(run / "net.safetensors").report.checkpoints[0]
    assert all(node.action.verified is None for node in found.nodes)
    assert found.model.verified is None


def test_what_was_tried_is_said_on_the_screen_and_kept_in_the_cache(run: Path, tmp_path: Path) -> None:
    settings = nndiag.ScanSettings(verify=True, goal="deploy", cache=str(tmp_path / "kept"))
    first = nndiag.scan(run / "net.safetensors", settings).report
    second = nndiag.scan(run / "net.safetensors", settings).report
    assert second.checkpoints[0].nodes == first.checkpoints[0].nodes
    words = " ".join(render_text(first, width=200).split())
    assert "(tried on the probe: the outputs stay as they are)" in words
    assert "actions together: loss" in words


def test_it_needs_a_model_and_data(run: Path) -> None:
    with pytest.raises(UsageError, match="--verify: it needs more than the weights"):
        scanned(run, level=Level.WEIGHTS)
    (run / "nndiag.toml").unlink()
    with pytest.raises(UsageError, match="--verify: it needs the model"):
        scanned(run)


def test_outputs_that_are_not_finite_are_no_reason_to_fail(run: Path) -> None:
    net = network()
    with torch.no_grad():
        net[4].weight *= 3e38
        net[2].weight *= 1e30
    save_file(dict(net.state_dict()), run / "net.safetensors")
    found = scanned(run)
    assert found.level == "activations"
    assert found.model.verified is None


def test_for_training_the_gradients_after_all_treatments_are_told(run: Path) -> None:
    found = scanned(run, goal="train")
    told = {(n.layer, n.index): n.action for n in found.nodes if n.action.kind == "reinitialise"}
    assert set(told) >= {("0", 0), ("0", 1), ("0", 2)}
    for place in (("0", 0), ("0", 1), ("0", 2)):
        numbers = told[place].verified
        assert numbers is not None
        assert numbers["gradient_before"] == 0
        assert numbers["gradient_after"] > 0
        assert numbers["outgoing_gradient_after"] > 1e-4
        assert numbers["active_after"] == pytest.approx(0.5, abs=0.1)
        assert numbers["output_change"] == 0
    whole = found.model.verified
    assert whole is not None
    assert whole["actions"] >= 3
    assert whole["loss_after"] <= 1.011 * whole["loss_before"]


def stepped_loss(changes: dict[tuple[str, int], float], by_adam: dict[str, Tensor] | None = None) -> float:
    """Return the loss after a step of some nodes, each at its own rate, taken by hand."""
    net, (x, y) = network(), probe()
    nn.functional.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        for (layer, node), rate in changes.items():
            for name in (f"{layer}.weight", f"{layer}.bias"):
                parameter = net.get_parameter(name)
                assert parameter.grad is not None
                divisor = 1.0 if by_adam is None else by_adam[name][node]
                parameter[node] -= rate * parameter.grad[node] / divisor
        return float(nn.functional.cross_entropy(net(x), y))


def test_rates_are_tried_by_one_step_of_each_node_and_of_all(run: Path) -> None:
    found = scanned(run, goal="train", optimizer="sgd", lr=20.0)
    tried = {(n.layer, n.index): n.action.verified for n in found.nodes if n.action.kind == "lower_lr"}
    assert len(tried) > 3
    rates = {}
    for place, numbers in tried.items():
        assert numbers is not None
        assert isinstance(numbers["lr"], float)
        rates[place] = numbers["lr"]
        assert numbers["lr"] <= 10.0
        assert numbers["loss_before"] == pytest.approx(loss_of(network()), rel=1e-5)
        assert numbers["loss_after"] == pytest.approx(stepped_loss({place: numbers["lr"]}), rel=1e-4)
        assert numbers["loss_after_at_present_lr"] == pytest.approx(stepped_loss({place: 20.0}), rel=1e-4)
        assert numbers["gradient_before"] != numbers["gradient_after"]
    whole = found.model.verified
    assert whole is not None
    assert whole["steps"] == len(tried)
    assert whole["steps_loss_after"] == pytest.approx(stepped_loss(rates), rel=1e-4)
    assert whole["steps_loss_after_at_present_lr"] == pytest.approx(
        stepped_loss(dict.fromkeys(tried, 20.0)), rel=1e-4
    )
    assert whole["steps_loss_after"] < whole["steps_loss_after_at_present_lr"]


def test_steps_of_adam_take_the_moments_of_the_checkpoint(run: Path) -> None:
    net, (x, y) = network(), probe()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)  # the weights stay, the moments come
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, run / "net.pt")
    settings = nndiag.ScanSettings(verify=True, goal="train", lr=1.0)
    found = nndiag.scan(run / "net.pt", settings).report.checkpoints[0]
    tried = {(n.layer, n.index): n.action.verified for n in found.nodes if n.action.kind == "lower_lr"}
    assert tried
    divisors = {
        name: (optimizer.state[p]["exp_avg_sq"] / (1 - 0.999)).sqrt() + 1e-8
        for name, p in net.named_parameters()
    }
    for place, numbers in tried.items():
        assert numbers is not None
        assert isinstance(numbers["lr"], float)
        expected = stepped_loss({place: numbers["lr"]}, divisors)
        assert numbers["loss_after"] == pytest.approx(expected, rel=1e-4)


def test_the_screen_says_that_a_rate_was_tried_by_a_step(run: Path) -> None:
    settings = nndiag.ScanSettings(verify=True, goal="train", optimizer="sgd", lr=20.0)
    words = " ".join(render_text(nndiag.scan(run / "net.safetensors", settings).report, width=300).split())
    assert "tried on the probe by one step at that rate, each alone: outputs change" in words


def test_a_dead_output_is_tried_with_its_bias_raised(run: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3), nn.ReLU())
    x, _ = probe()
    y = torch.rand(300, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        net[2].bias[1] = -50.0
        z = (net[:3](x))[:, 1].sort(descending=True).values
    (run / "nndiag.toml").write_text(
        CONFIG.replace(
            '["Linear", 10, 8], ["ReLU"], ["Linear", 8, 3]', '["Linear", 10, 3], ["ReLU"]'
        ).replace("cross_entropy", "mse")
    )
    save_file({"x": x, "y": y}, run / "probe.safetensors")
    save_file(dict(net.state_dict()), run / "net.safetensors")
    found = scanned(run, goal="train")
    (node,) = (n for n in found.nodes if n.action.kind == "bias_warmup")
    assert (node.layer, node.index) == ("2", 1)
    with torch.no_grad():
        before = float(nn.functional.mse_loss(net(x), y))
        net[2].bias[1] -= z[15]  # 15 of 300 samples fire
        after = float(nn.functional.mse_loss(net(x), y))
    numbers = node.action.verified
    assert numbers is not None
    assert numbers["loss_before"] == pytest.approx(before, rel=1e-5)
    assert numbers["loss_after"] == pytest.approx(after, rel=1e-4)
    assert numbers["output_change"] > 0


def test_turning_is_tried_node_by_node(run: Path) -> None:
    found = scanned(run, goal="train", all_nodes=True)
    cannot_turn = Finding(code="ND302", name="no-torque", severity="warning", message="", evidence={})
    action = Action(kind="angular_noise", reason="its gradient cannot turn it (ND302)")
    nodes = tuple(
        n.model_copy(update={"findings": (cannot_turn,), "action": action})
        if (n.layer, n.index) in (("2", 0), ("2", 3))
        else n.model_copy(update={"findings": (), "action": Action(kind="none", reason="")})
        for n in found.nodes
    )
    x, y = probe()
    given, net = probe_of((x, y), "cross_entropy"), network()
    tried = verified(found.model_copy(update={"nodes": nodes}), net, given, None, 0, "train").diagnosis
    told = {(n.layer, n.index): n.action.verified for n in tried.nodes if n.action.verified is not None}
    assert set(told) == {("2", 0), ("2", 3)}
    moves = {move.index: move.by for move in moves_alone(tried, net, given, 0)}
    for index in (0, 3):
        changed = network()
        with torch.no_grad():
            weight = net[2].weight[index]
            turned = weight + moves[index][:-1]
            assert float(turned.norm()) == pytest.approx(float(weight.norm()), rel=1e-5)
            angle = torch.arccos(torch.cosine_similarity(turned, weight, dim=0).double().clamp(max=1))
            assert float(angle) == pytest.approx(0.1, rel=1e-2)
            changed[2].weight[index] = turned
        numbers = told["2", index]
        assert numbers is not None
        assert numbers["loss_after"] == pytest.approx(loss_of(changed), rel=1e-5)
        assert numbers["loss_after"] < numbers["loss_before"]
