"""A smaller network is built again from what is written about it, and takes the weights."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import nndiag
from nndiag.errors import InputError, UsageError
from nndiag.model.sequential import build_sequential
from nndiag.surgery.deploying import Deployed, as_toml, cost, deploy, smaller_sequential
from tests.surgery.deploying.networks import Shared, Transformer, inputs, kill, prune, seeded, treated

ENTRIES = [
    ["Conv2d", 3, 6, 3, {"padding": 1, "bias": True}],
    ["BatchNorm2d", 6],
    ["ReLU"],
    ["Conv2d", 6, 6, 3, {"groups": 6}],
    ["PReLU", 6],
    ["Flatten"],
    ["Linear", 24, 8, {"bias": True}],
    ["LeakyReLU", 0.2],
    ["Linear", 8, 3],
]


def shrunk() -> tuple[nn.Sequential, Deployed]:
    model = seeded(lambda: build_sequential(ENTRIES))
    with torch.no_grad():
        model[1].weight[[0, 4]] = 0.0
        model[1].bias[[0, 4]] = -1.0
        model[3].weight[[0, 4]] = 0.0
        model[8].weight[:, 2] = 0.0
    found = treated(model, inputs(9, 3, 4, 4), [*prune("0", [0, 4]), *prune("6", [2])])
    assert isinstance(found.module, nn.Sequential)
    return model, found


def test_a_sequential_is_written_with_its_new_sizes() -> None:
    _, found = shrunk()
    table = as_toml(smaller_sequential(ENTRIES, found.module))
    entries = tomllib.loads(table)["model"]["sequential"]
    assert entries[0] == ["Conv2d", 3, 4, 3, {"padding": 1, "bias": True}]
    assert entries[3] == ["Conv2d", 4, 4, 3, {"groups": 4}]
    assert entries[6] == ["Linear", 16, 7, {"bias": True}]
    again = build_sequential(entries).double().eval()
    again.load_state_dict(found.module.state_dict())
    x = inputs(5, 3, 4, 4, seed=2)
    assert torch.equal(again(x), found.module(x))


def test_a_network_from_a_factory_is_brought_to_the_new_sizes(tmp_path: Path) -> None:
    model = seeded(Transformer)
    with torch.no_grad():
        model.blocks[0].f2.weight[:, [3, 50]] = 0.0
        model.blocks[1].att.qkv.weight[72:80] = 0.0
    tokens = torch.randint(0, 20, (9, 7), generator=torch.Generator().manual_seed(1))
    treatments = [*prune("blocks.0.f1", [3, 50]), *prune("blocks.1.att.qkv", range(72, 80))]
    found = deploy(model, [(tokens,)], treatments)
    file = tmp_path / "widths.json"
    file.write_text(json.dumps(found.widths))
    fresh = nndiag.resize(Transformer().double().eval(), file)
    fresh.load_state_dict(found.module.state_dict(), strict=True)
    assert torch.equal(fresh(tokens), found.module(tokens))
    assert fresh.head.weight is fresh.table.weight
    assert found.widths["blocks.1.att"] == {"num_heads": 3}


def test_the_edits_are_the_smaller_network() -> None:
    """What is written: the old weights with the values of the edits, and nothing that did not change."""
    model, found = shrunk()
    state = {**model.state_dict(), **found.edits.values}
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in found.module.state_dict().items()
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.module.state_dict().items())
    before = model.state_dict()
    assert all(
        value.shape != before[name].shape or not torch.equal(value, before[name])
        for name, value in found.edits.values.items()
    )


def test_what_is_kept_points_at_the_old_entries() -> None:
    model, found = shrunk()
    before = model.state_dict()
    for name, axes in found.edits.kept.items():
        picked = before[name]
        for axis, places in enumerate(axes):
            picked = picked if places is None else picked.index_select(axis, places)
        if name != "6.bias":  # which has taken over what channels put out that nothing goes into
            assert torch.equal(picked, found.edits.values[name])
    assert set(found.edits.kept) == set(found.edits.values)


def test_tied_names_are_edited_alike() -> None:
    model = seeded(Shared)
    model.out.weight.data[:, 1] = 0.0
    found = treated(model, inputs(12, 6), prune("a", [1]))
    assert torch.equal(found.edits.values["a.weight"], found.edits.values["b.weight"])
    fresh = nndiag.resize(Shared().double(), found.widths)
    assert fresh.a.weight is fresh.b.weight
    fresh.load_state_dict({**model.state_dict(), **found.edits.values})


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({"nowhere": {"out_features": 2}}, 'no module "nowhere"'),
        ({"0": {"out_features": 0}}, "no out_features that could become 0"),
        ({"0": {"weight": [99, 3, 3, 3]}}, "no weight that could become"),
        ({"0": {"forward": 3}}, "no forward"),
        ({"0": {"training": True}}, "no training"),
        ({"0": {"weight": 3}}, "no weight"),
    ],
)
def test_sizes_of_another_network_are_refused(widths: dict[str, dict[str, object]], said: str) -> None:
    model = build_sequential(ENTRIES)
    with pytest.raises(UsageError, match=said):
        nndiag.resize(model, widths)
    assert model[0].weight.shape == (6, 3, 3, 3)


def test_a_file_that_holds_no_sizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"0": ')
    for name in ("list.json", "half.json", "absent.json"):
        with pytest.raises(InputError):
            nndiag.resize(build_sequential(ENTRIES), tmp_path / name)


def test_cost_is_counted_and_falls() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    kill(model[0], [0, 1])
    found = treated(model, inputs(12, 5), prune("0", [0, 1]))
    assert (found.before.parameters, found.after.parameters) == (5 * 8 + 8 + 8 * 3 + 3, 5 * 6 + 6 + 6 * 3 + 3)
    assert found.before.flops == 2 * (5 * 8 + 8 * 3)
    assert found.after.flops == 2 * (5 * 6 + 6 * 3)
    assert cost(model, (inputs(4, 5),)).seconds > 0
