"""What library users call: the same records as the command line, and an assertion for their tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import nndiag
from nndiag.errors import InputError, UsageError
from nndiag.report import render_json

ROOT = Path(__file__).parents[2] / "sample_checkpoints"


def network(killed: int = 0) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[:killed] = -100.0
    return net


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, 4, generator=generator), torch.randint(0, 3, (50,), generator=generator)


def test_gate_and_compare_take_what_scan_returns(tmp_path: Path) -> None:
    outcome = nndiag.scan(ROOT / "dying_mlp", nndiag.ScanSettings(level=None, every=6))
    document = json.loads(render_json(outcome.report))
    file = tmp_path / "r.json"
    file.write_text(render_json(outcome.report))
    verdicts = [nndiag.gate(report) for report in (outcome, outcome.report, document, file, str(file))]
    assert all(verdict == verdicts[0] for verdict in verdicts)
    assert not verdicts[0].passed  # by the run's own policy
    assert nndiag.gate(outcome, {"max_degenerate_fraction": 1.0}).passed
    found = nndiag.compare(file)
    assert found == nndiag.compare(
        ROOT / "dying_mlp", nndiag.CompareSettings(scan=nndiag.ScanSettings(every=6))
    )
    assert {f.code for node in found.nodes for f in node.findings} >= {"ND701"}


def test_functions_are_still_there_after_their_rooms_were_imported() -> None:
    import nndiag.comparing.rules
    import nndiag.gating.checking

    assert callable(nndiag.compare)
    assert callable(nndiag.gate)
    assert callable(nndiag.scan)


def test_a_healthy_network_passes_and_is_left_as_it_was() -> None:
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    nndiag.assert_healthy(net, data())
    nndiag.assert_healthy(net, data(), {"max_dead_fraction": 0.1})
    nndiag.assert_healthy(net, data()[0], {"max_dead_fraction": 0.1})
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_dying_one_fails_and_says_where() -> None:
    with pytest.raises(AssertionError, match=r"max_dead_fraction, layer 0: 3 of 8 nodes are dead: 37.5%"):
        nndiag.assert_healthy(network(3), data(), {"max_dead_fraction": 0.1})
    with pytest.raises(AssertionError, match="ND252, layer 0"):
        nndiag.assert_healthy(network(6), data())
    broken = network()
    with torch.no_grad():
        broken[2].weight[1, 1] = float("nan")
    with pytest.raises(AssertionError, match="forbid ND101, layer 2"):
        nndiag.assert_healthy(broken, data())


def test_a_policy_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("max_dead_fraction = 0.5\n")
    nndiag.assert_healthy(network(3), data(), tmp_path / "p.toml")
    with pytest.raises(UsageError, match="did you mean"):
        nndiag.assert_healthy(network(), data(), {"max_dead": 1})


def test_what_cannot_be_looked_at() -> None:
    x, y = data()
    with pytest.raises(InputError, match="x has 50 samples and y 49"):
        nndiag.assert_healthy(network(), (x, y[1:]))
    with pytest.raises(UsageError, match="no such loss"):
        nndiag.assert_healthy(network(), (x, y), loss="l2")
