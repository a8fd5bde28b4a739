"""A history taken while a network trains is what a scan of the same batch says, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nndiag
from nndiag.errors import UsageError
from nndiag.measures import Plan, measure
from nndiag.monitor.watched import WatchedStep
from nndiag.pipeline.in_memory import diagnose_model, probe_of
from nndiag.records.level import Level
from nndiag.records.packed import unpack
from nndiag.records.report import Diagnosis

Batch = tuple[Tensor, Tensor]


def network(dead: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[:dead] = -100.0
    return net


def batches(count: int, size: int = 48) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


def train(
    net: nn.Module,
    monitor: nndiag.Monitor,
    given: list[Batch],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in given:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        monitor.step(loss)
        optimizer.step()


def hooks(net: nn.Module) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
             "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs", "_backward_hooks")  # fmt: skip
    return sum(len(getattr(module, name)) for module in net.modules() for name in names)


def test_a_step_says_what_a_scan_of_its_batch_says() -> None:
    net, (batch, *_) = network(), batches(1)
    scanned = diagnose_model(net, batch, "cross_entropy", None).checkpoints[0]
    with nndiag.Monitor(net, every=1) as monitor:
        train(net, monitor, [batch])
    taken = monitor.latest
    assert taken is not None
    assert taken.model.loss == pytest.approx(scanned.model.loss, rel=1e-6)
    assert taken.model.gradient_norm == pytest.approx(scanned.model.gradient_norm, rel=1e-5)
    for layer, expected in zip(taken.layers, scanned.layers, strict=True):
        assert (layer.name, layer.activation, layer.nodes) == (
            expected.name,
            expected.activation,
            expected.nodes,
        )
        assert layer.every_node is not None
        assert expected.every_node is not None
        assert layer.every_node.bias == expected.every_node.bias
        for name in ("dead_data_fraction", "dormant_fraction", "torque_ratio_mean", "torque_ratio_p10"):
            assert (name in layer.measures) == (name in expected.measures)
            if name in expected.measures:
                assert layer.measures[name] == pytest.approx(expected.measures[name], rel=1e-4, abs=1e-6)
    dead = {(node.layer, node.index): node for node in taken.nodes if node.verdict == "plateau"}
    assert set(dead) >= {("0", i) for i in range(3)}
    nodes = {(node.layer, node.index): node for node in scanned.nodes}
    for place, node in dead.items():
        common = node.measures.keys() & nodes[place].measures.keys()
        assert common >= {
            "active_fraction",
            "dormancy",
            "gradient_norm",
            "weight_norm",
            "output_mean",
            "output_std",
        }
        for name in common:
            if nodes[place].measures[name] is None:  # the torque of a node without a gradient
                assert node.measures[name] is None
                continue
            assert node.measures[name] == pytest.approx(nodes[place].measures[name], rel=1e-4, abs=1e-5)


class Raw(nn.Module):
    """Raw parameters whose nodes lie along other axes than the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bias = nn.Parameter(torch.randn(6, 12)), nn.Parameter(torch.zeros(12))
        self.second, self.last = nn.Parameter(torch.randn(12, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(x @ self.first + self.bias)
        return self.last(torch.relu(torch.einsum("bi,io->bo", hidden, self.second)))


def test_the_nodes_of_raw_matrices_are_those_of_a_scan_from_the_first_step_on() -> None:
    net, (batch, *_) = Raw(), batches(1)
    with torch.no_grad():
        net.first[:, :2] = -net.first[:, :2].abs()
        net.bias[:2] = -100.0
    scanned = diagnose_model(net, batch, "cross_entropy", None).checkpoints[0]
    stay = torch.optim.SGD(net.parameters(), lr=0.0)
    with nndiag.Monitor(net, every=1) as monitor:
        train(net, monitor, [batch, batch], stay)
    assert [one.nodes for one in scanned.layers] == [12, 12, 8, 3]
    for taken in monitor.report.checkpoints:
        for layer, expected in zip(taken.layers, scanned.layers, strict=True):
            assert (layer.name, layer.nodes, layer.fan_in) == (expected.name, expected.nodes, expected.fan_in)
            assert layer.activation == expected.activation
            assert layer.every_node is not None
            assert expected.every_node is not None
            norms = unpack(layer.every_node.weight_norm, layer.nodes)
            assert norms == pytest.approx(unpack(expected.every_node.weight_norm, layer.nodes), rel=1e-6)
        dead = {
            (node.layer, node.index) for node in taken.nodes if "ND201" in {f.code for f in node.findings}
        }
        assert dead == {("first", 0), ("first", 1)}


class Convolutions(nn.Module):
    """Units in several places, behind a norm, and one that every sample reaches only here and there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x.view(-1, 1, 6, 6)))).mean((2, 3)))


def test_sums_in_single_precision_are_those_of_a_scan() -> None:
    net = Convolutions().eval()
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(40, 36, generator=generator) + 3, torch.randint(0, 3, (40,), generator=generator)
    scanned = diagnose_model(net, (x, y), "cross_entropy", None).checkpoints[0]
    net.train()
    net.norm.eval()  # the statistics of the scan
    with nndiag.Monitor(net, every=1, thresholds={"dormancy": 10.0}) as monitor:
        train(net, monitor, [(x, y)])
    taken = monitor.latest
    assert taken is not None
    measures = next(layer.measures for layer in taken.layers if layer.name == "first")
    expected = next(layer.measures for layer in scanned.layers if layer.name == "first")
    assert measures["dead_data_fraction"] == expected["dead_data_fraction"]
    assert measures["torque_ratio_mean"] == pytest.approx(expected["torque_ratio_mean"], rel=1e-4)


def test_only_every_kth_step_is_touched_and_nothing_is_left() -> None:
    net, given = network(), batches(10)
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with nndiag.Monitor(net, every=4) as monitor:
        for step, batch in enumerate(given, 1):
            assert (hooks(net) > 0) == (step % 4 == 0)
            train(net, monitor, [batch], optimizer)
    assert [one.checkpoint.step for one in monitor.report.checkpoints] == [4, 8]
    assert hooks(net) == 0
    for name, module in net.named_modules():
        now = vars(module)
        assert now.keys() == before[name].keys()
        assert all(now[key] is before[name][key] for key in now)


def test_nothing_is_left_after_an_error_in_the_forward_pass() -> None:
    net = network()
    monitor = nndiag.Monitor(net, every=1)
    with pytest.raises(RuntimeError):
        net(torch.zeros(4, 5))
    assert hooks(net) == 0
    assert net(torch.zeros(4, 6)).shape == (4, 3)
    monitor.close()


def test_nothing_is_left_after_an_error_in_the_loop() -> None:
    net = network()
    monitor = nndiag.Monitor(net, every=1)
    assert hooks(net) > 0

    def loop() -> None:
        with monitor:
            raise KeyError

    with pytest.raises(KeyError):
        loop()
    assert hooks(net) == 0


def test_a_step_without_a_forward_pass_in_training_mode_is_not_measured() -> None:
    net = network()
    with nndiag.Monitor(net, every=1) as monitor:
        net.eval()(batches(1)[0][0])
        assert monitor.step() is False
    with pytest.raises(UsageError, match="none of 1 steps was measured"):
        _ = monitor.report


class Odd(nn.Module):
    """Its output is an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> object:
        return type("Output", (), {"logits": self.net(x)})()


def test_an_output_that_cannot_be_understood_stops_no_training() -> None:
    net, (x, y) = Odd(), batches(1)[0]
    with nndiag.Monitor(net, every=1) as monitor:
        loss = nn.functional.cross_entropy(net(x).logits, y)
        loss.backward()
        assert monitor.step(loss) is False
        assert hooks(net) > 0  # for the next step
        monitor.begin(x)
        loss = nn.functional.cross_entropy(net(x).logits, y)
        monitor.end(loss)
        loss.backward()
        assert monitor.step(loss) is True
    assert hooks(net) == 0


def test_training_is_the_same_with_and_without_it() -> None:
    ends = []
    for every in (1, 10**6):
        net = network()
        with nndiag.Monitor(net, every=every) as monitor:
            train(net, monitor, batches(6))
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


class Fused(nn.Module):
    """What torch does in one call: two recurrent layers with dropout between them, and attention with dropout."""

    def __init__(self, dropout: float = 0.5, kind: type[nn.RNNBase] = nn.LSTM, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.states = kind(2, 8, layers, dropout=dropout, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(16, 4, dropout=dropout, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.states(x.unflatten(1, (3, 2)))
        attended, _ = self.attention(found, found, found, need_weights=False)
        return self.last(attended.mean(dim=1))


def test_training_is_the_same_where_torch_does_in_one_call_what_a_scan_takes_apart() -> None:
    ends = []
    for every in (1, 10**6):
        net = Fused()
        torch.manual_seed(1)
        with nndiag.Monitor(net, every=every) as monitor:
            train(net, monitor, batches(4))
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_states_and_projections_are_those_of_a_scan(kind: type[nn.RNNBase]) -> None:
    net, (x, y) = Fused(0.0, kind, layers=3), batches(1)[0]
    scanned = measure(net, probe_of((x, y), "cross_entropy"), Plan(Level.GRADIENTS), None)
    step = WatchedStep(net)
    step.arm()
    nn.functional.cross_entropy(net(x), y).backward()
    taken = step.take(None, 1.0, lambda: None)()
    for found, expected in zip(taken.layers, scanned.layers, strict=True):
        assert (found.name, found.reached, found.is_output) == (expected.name, True, expected.is_output)
        for name, values in found.per_node.items():
            assert values == pytest.approx(expected.per_node[name], rel=1e-3, abs=1e-6, nan_ok=True), name
        assert {
            "weight_norm",
            "gradient_norm",
            "torque_ratio",
            "dormancy",
            "output_std",
        } <= found.per_node.keys()
        assert found.directions == pytest.approx(expected.directions, abs=2e-3)


def test_states_behind_a_dropout_that_cannot_be_seen_are_left_out() -> None:
    net = Fused(0.5, layers=3)
    with nndiag.Monitor(net, every=1) as monitor:
        train(net, monitor, batches(1))
    assert monitor.latest is not None
    dormant = {layer.name: "dormant_fraction" in layer.measures for layer in monitor.latest.layers}
    assert dormant == {
        "states.l0": True, "states.l0_reverse": True, "states.l1": False, "states.l1_reverse": False,
        "states.l2": True, "states.l2_reverse": True, "attention": True, "attention.out_proj": True, "last": True,
    }  # fmt: skip


class Routed(nn.Module):
    """A layer that gets no sample at all."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        everything = x[:, 0] < torch.inf
        parts = torch.cat([self.one(x[everything]), self.other(x[~everything])])
        return self.last(torch.relu(parts))


def test_a_layer_without_samples_stops_no_training() -> None:
    with nndiag.Monitor(Routed(), every=1) as monitor:
        train(monitor._model, monitor, batches(1))
    assert monitor.latest is not None
    measured = {layer.name: "dormant_fraction" in layer.measures for layer in monitor.latest.layers}
    assert measured["one"] is True
    assert measured["other"] is False


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e17, 1e25])
def test_norms_hold_at_every_scale(scale: float) -> None:
    net = network(dead=0)
    with torch.no_grad():
        net[0].weight[:6] *= scale
        net[0].weight[7] = 0.0
    expected = net[0].weight.detach().double().norm(dim=1)
    with nndiag.Monitor(net, every=1, thresholds={"dormancy": 10.0}) as monitor:
        train(net, monitor, batches(1))
    assert monitor.latest is not None
    found = {n.index: n.measures["weight_norm"] for n in monitor.latest.nodes if n.layer == "0"}
    assert found[7] == 0.0
    assert len(found) > 6
    assert all(norm == pytest.approx(float(expected[i]), rel=1e-5) for i, norm in found.items())


def test_a_gradient_that_two_names_share_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
            self.two.weight = self.one.weight
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(x))) * self.scale

    net = Tied()
    with nndiag.Monitor(net, every=1) as monitor:
        train(net, monitor, batches(1), torch.optim.SGD(net.parameters(), lr=0.0))
    expected = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()
    assert monitor.latest is not None
    assert monitor.latest.model.gradient_norm == pytest.approx(float(expected), rel=1e-5)


def test_compare_and_gate_read_the_history(tmp_path: Path) -> None:
    net, file = network(), tmp_path / "history.json"
    with nndiag.Monitor(net, every=2, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)) as monitor:
        train(net, monitor, batches(8))
    monitor.save(file)
    document = json.loads(file.read_text())
    assert [one["checkpoint"]["step"] for one in document["checkpoints"]] == [2, 4, 6, 8]
    assert document["checkpoints"][0]["checkpoint"]["optimizer"]["lr"] == 0.1
    found = nndiag.compare(file)
    assert [mark.step for mark in found.checkpoints] == [2, 4, 6, 8]
    assert {layer.name: layer.degenerate for layer in found.layers}["0"] == (3, 3, 3, 3)
    assert nndiag.gate(file, {"max_degenerate_fraction": 0.5}).passed
    assert not nndiag.gate(file, {"max_degenerate_fraction": 0.01}).passed


def test_curvature_on_a_probe_takes_its_turn() -> None:
    net = network()
    probe = batches(1, 60)[0]
    with nndiag.Monitor(net, every=2, probe=probe, curvature_every=2) as monitor:
        train(net, monitor, batches(8))
    levels = [one.level for one in monitor.report.checkpoints]
    assert levels == ["gradients", "curvature", "gradients", "curvature"]
    assert hooks(net) == 0
    assert net.training


def test_a_history_keeps_what_was_there_when_it_was_taken() -> None:
    net = network().double()
    given = [(x.double(), y) for x, y in batches(1)]
    expected = net[2].bias.detach().clone()
    with nndiag.Monitor(net, every=1) as monitor:
        train(net, monitor, given)
        with torch.no_grad():
            net[2].bias.fill_(7.0)
    assert monitor.latest is not None
    kept = monitor.latest.layers[1].every_node
    assert kept is not None
    assert kept.bias is not None
    assert unpack(kept.bias, 8) == pytest.approx(expected.float().numpy())


def test_gradients_that_a_scaler_multiplied_are_divided_again() -> None:
    found: list[Diagnosis] = []
    for scale in (1.0, 1024.0):
        net, (x, y) = network(), batches(1)[0]
        with nndiag.Monitor(net, every=1) as monitor:
            loss = nn.functional.cross_entropy(net(x), y)
            (scale * loss).backward()
            monitor.step(loss, scale=scale)
        assert monitor.latest is not None
        found.append(monitor.latest)
    assert found[0].model.gradient_norm == pytest.approx(found[1].model.gradient_norm, rel=1e-6)


def test_under_autocast() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with nndiag.Monitor(net, every=2, optimizer=optimizer) as monitor:
        for x, y in batches(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
    found = monitor.latest
    assert found is not None
    assert {n.index for n in found.nodes if n.verdict == "plateau" and n.layer == "0"} == {0, 1, 2}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_a_compiled_model_runs_eagerly_when_it_is_watched_and_is_not_compiled_again(
    backend: str, in_place: bool
) -> None:
    import torch._dynamo.utils as of_dynamo

    torch._dynamo.reset()
    net = network()
    if in_place:
        net.compile(backend=backend)
        compiled: nn.Module = net
    else:
        compiled = torch.compile(net, backend=backend)
    monitor = nndiag.Monitor(compiled, every=3)
    with monitor:
        train(compiled, monitor, batches(2))
        count = of_dynamo.counters["frames"]["ok"]
        assert count > 0
        train(compiled, monitor, batches(7))
    assert of_dynamo.counters["frames"]["ok"] == count
    assert len(monitor.report.checkpoints) == 3
    assert {
        n.index for n in monitor.report.checkpoints[-1].nodes if n.verdict == "plateau" and n.layer == "0"
    } == {0, 1, 2}
    assert hooks(net) == 0


def test_wrong_numbers() -> None:
    with pytest.raises(UsageError, match="every=0: is too small"):
        nndiag.Monitor(network(), every=0)
    with pytest.raises(UsageError, match="curvature_every=2: there is no probe"):
        nndiag.Monitor(network(), curvature_every=2)
