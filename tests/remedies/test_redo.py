"""The rival that the remedies are measured against does what its paper says."""

from __future__ import annotations

import torch
from benchmarks.remedies.redo import recycle
from torch import nn


def test_dormant_units_are_recycled_and_no_others() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[2] = -100.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x = torch.randn(50, 5)
    net(x).square().sum().backward()
    optimizer.step()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert recycle(net, optimizer, x, 0.025) == 1
    rest = [i for i in range(8) if i != 2]
    assert not torch.equal(net[0].weight[2], before["0.weight"][2])
    assert net[0].bias[2] == 0
    assert not net[2].weight[:, 2].any()
    assert torch.equal(net[0].weight[rest], before["0.weight"][rest])
    assert torch.equal(net[2].weight[:, rest], before["2.weight"][:, rest])
    moments = optimizer.state[net[2].weight]["exp_avg_sq"]
    assert not moments[:, 2].any()
    assert moments[:, rest].any()
    assert not optimizer.state[net[0].weight]["exp_avg"][2].any()
    assert bool((net[0](x)[:, 2] > 0).any())


def test_none_is_recycled_where_none_is_dormant() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert recycle(net, torch.optim.Adam(net.parameters()), torch.randn(200, 5), 0.025) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
