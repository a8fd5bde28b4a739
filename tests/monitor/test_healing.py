"""The self-healing loop: what triggers it, what it does to network and optimiser, and when it gives up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nndiag
from nndiag.errors import UsageError
from nndiag.monitor import HealingSettings

from .test_monitor import batches, hooks, network

ONLY_DEAD = HealingSettings(only=("ND201",), layers=("0",))


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=1e-3)


def train(
    net: nn.Sequential, optimizer: torch.optim.Optimizer, monitor: nndiag.Monitor, steps: int
) -> list[float]:
    """Train, and return by how much the outputs on each batch change in the monitor's own step."""
    changes = []
    for x, y in batches(steps, 200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        with torch.no_grad():
            before = net.eval()(x)
            net.train()
            monitor.step(loss)
            after = net.eval()(x)
            net.train()
        changes.append(float((after - before).abs().max() / before.abs().max()))
        optimizer.step()
    return changes


def active(net: nn.Sequential) -> Tensor:
    with torch.no_grad():
        return (net[0](batches(1, 400)[0][0]) > 0).double().mean(dim=0)


def test_dead_units_are_started_anew_after_two_measurements_and_the_function_stays() -> None:
    net = network()
    optimizer = adam(net)
    with nndiag.Monitor(net, every=2, optimizer=optimizer, heal=ONLY_DEAD) as monitor:
        changes = train(net, optimizer, monitor, 8)
    assert [(c.step, c.treatment.layer, c.treatment.index, c.done) for c in monitor.corrections] == [
        (4, "0", i, True) for i in range(3)
    ]
    assert max(changes) < 1e-6
    assert bool((active(net)[:3] > 0.2).all())
    last = monitor.latest
    assert last is not None
    assert not [n for n in last.nodes if n.layer == "0" and n.verdict == "plateau"]
    assert hooks(net) == 0


def test_the_optimiser_forgets_what_was_started_anew_and_nothing_else() -> None:
    net = network()
    optimizer = adam(net)
    monitor = nndiag.Monitor(net, every=1, optimizer=optimizer, heal=ONLY_DEAD)
    with monitor:
        train(net, optimizer, monitor, 1)
        x, y = batches(2, 200)[1]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        kept = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        monitor.step(loss)
    assert len(monitor.corrections) == 3
    moments = optimizer.state[net[2].weight]["exp_avg"]
    assert not moments[:, :3].any()
    assert moments[:, 3:].any()
    gradient = net[2].weight.grad
    assert gradient is not None
    assert not gradient[:, :3].any()
    assert torch.equal(gradient[:, 3:], kept["2.weight"][:, 3:])


def test_it_is_off_by_default() -> None:
    net = network()
    optimizer = adam(net)
    with nndiag.Monitor(net, every=2, optimizer=optimizer) as monitor:
        train(net, optimizer, monitor, 8)
    assert monitor.corrections == ()
    assert not active(net)[:3].any()


def test_a_healthy_network_trains_as_it_would() -> None:
    ends = []
    for heal in (False, ONLY_DEAD):
        net = network(dead=0)
        optimizer = adam(net)
        with nndiag.Monitor(net, every=2, optimizer=optimizer, heal=heal) as monitor:
            train(net, optimizer, monitor, 8)
        assert monitor.corrections == ()
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_node_that_dies_again_and_again_is_given_up() -> None:
    net = network(dead=1)
    optimizer = adam(net)
    with nndiag.Monitor(net, every=1, optimizer=optimizer, heal=ONLY_DEAD) as monitor:
        for _ in range(12):
            train(net, optimizer, monitor, 1)
            with torch.no_grad():
                net[0].bias[0] = -100.0
    assert [(c.step, c.attempt) for c in monitor.corrections] == [(2, 1), (4, 2), (6, 3)]


def test_with_a_probe_it_is_proved_there() -> None:
    net = network()
    optimizer = adam(net)
    probe = batches(1, 120)[0]
    with nndiag.Monitor(net, every=2, optimizer=optimizer, probe=probe, heal=ONLY_DEAD) as monitor:
        train(net, optimizer, monitor, 4)
    assert [c.done for c in monitor.corrections] == [True] * 3
    with torch.no_grad():
        fires = (net[0](probe[0]) > 0).double().mean(dim=0)[:3]
    assert fires == pytest.approx(torch.full((3,), 0.5, dtype=torch.float64), abs=0.15)


def test_an_unknown_initialiser_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="there is no such initialiser"):
        HealingSettings(initialiser="ones")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patience", 0), ("attempts", 0), ("max_loss_increase", -0.1), ("max_loss_increase", float("nan")),
        ("max_loss_increase", float("inf")), ("seed", -1), ("seed", 2**64),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_at_once(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^{name}={value}: is .*; give "):
        HealingSettings(**{name: value})


class Matrix(nn.Module):
    """A raw matrix with a column a unit; ``hidden`` where the model multiplies otherwise when it is examined."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix, self.last, self.hidden = nn.Parameter(torch.randn(6, 12)), nn.Linear(12, 4), hidden

    def forward(self, x: Tensor) -> Tensor:
        other = self.hidden and not self.training
        hidden = (x[:, :, None] * self.matrix).sum(dim=1) if other else x @ self.matrix
        return self.last(torch.relu(hidden))


def healed(net: Matrix, steps: int = 2) -> nndiag.Monitor:
    with nndiag.Monitor(net, every=1, heal=HealingSettings(only=("ND101",))) as monitor:
        for _ in range(steps):
            loss = nn.functional.cross_entropy(net(torch.randn(32, 6)), torch.randint(4, (32,)))
            net.zero_grad()
            loss.backward()
            monitor.step(loss)
    return monitor


def test_a_unit_that_is_a_column_of_a_matrix_is_healed() -> None:
    net = Matrix(hidden=False)
    with torch.no_grad():
        net.matrix[:, 2] = float("nan")
    before = net.matrix.detach().clone()
    monitor = healed(net)
    assert [(c.done, c.treatment.layer, c.treatment.index) for c in monitor.corrections] == [
        (True, "matrix", 2)
    ]
    changed = (net.matrix != before).any(dim=0)
    assert changed.tolist() == [unit == 2 for unit in range(12)]
    assert net.matrix.isfinite().all()


def test_a_matrix_whose_columns_are_units_is_left_where_the_model_hides_it() -> None:
    net = Matrix(hidden=True)
    with torch.no_grad():
        net.matrix[:, 2] = float("nan")
    monitor = healed(net)
    assert net.matrix.isnan().any(dim=0).tolist() == [unit == 2 for unit in range(12)]
    assert [one.done for one in monitor.corrections] == [False]
    assert "which axis" in monitor.corrections[0].detail
