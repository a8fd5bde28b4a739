"""The chain of layers that names and shapes suggest: right where it is offered, none where they do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nndiag.model.chain import Chain, find_chains
from nndiag.model.fit import fit
from nndiag.model.sequential import build_sequential


@dataclass(frozen=True)
class Place:
    key: str
    tensors: Mapping[str, Tensor]


def chains(model: nn.Module, prefix: str = "", **more: Tensor) -> tuple[Chain, ...]:
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    return find_chains(Place("", {**state, **more}))


@pytest.mark.parametrize("prefix", ["", "model.", "q_net.q_net."])
@pytest.mark.parametrize(
    ("layers", "inputs", "outputs", "guessed"),
    [
        ([nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)], 4, 3, {1}),
        ([nn.Linear(4, 3)], 4, 3, set()),
        ([nn.Linear(4, 8), nn.Linear(8, 1)], 4, 1, set()),
        ([nn.Flatten(), nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)], 4, 3, {0, 2, 3}),
        ([nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)], 4, 3, {2}),
        ([nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)], 4, 3, {2}),
    ],
    ids=["plain", "one", "no activation", "dropout", "batch norm", "layer norm"],
)  # fmt: skip
def test_what_is_offered_fits_the_weights(
    layers: list[nn.Module], inputs: int, outputs: int, guessed: set[int], prefix: str
) -> None:
    trained = nn.Sequential(*layers)
    (chain,) = chains(trained, prefix)
    assert (chain.inputs, chain.outputs, chain.guessed, chain.prefix) == (inputs, outputs, guessed, prefix)
    built = build_sequential(chain.layers)
    state = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    assert fit(built, [Place("", state)]).prefix == prefix


def test_two_networks_in_one_file_are_two_chains() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    both = {f"{which}.{name}": t for which in ("net", "target") for name, t in net.state_dict().items()}
    found = find_chains(Place("state", both))
    assert [chain.prefix for chain in found] == ["net.", "target."]
    assert {chain.place for chain in found} == {"state"}
    assert found[0].widths == "4→8→2"


@pytest.mark.parametrize(
    "tensors",
    [
        {"0.weight": torch.zeros(8, 4), "2.weight": torch.zeros(3, 7)},
        {"0.weight": torch.zeros(8, 4, 3, 3)},
        {"0.weight": torch.zeros(8, 4), "0.bias": torch.zeros(7)},
        {"0.weight": torch.zeros(8, 4), "scale": torch.zeros(1)},
        {"0.weight": torch.zeros(8, 0)},
        {"0.weight": torch.zeros(8, 4, dtype=torch.int8)},
        {"fc.weight": torch.zeros(8, 4)},
        {"9999.weight": torch.zeros(8, 4)},
        {f"{i}.weight": torch.zeros(2, 2) for i in range(1000)},
        {"0.bias": torch.zeros(3)},
    ],
    ids=[
        "widths",
        "convolution",
        "bias",
        "a parameter beside",
        "empty",
        "integers",
        "names",
        "far",
        "many",
        "bias alone",
    ],
)
def test_what_is_no_such_chain_is_not_offered(tensors: dict[str, Tensor]) -> None:
    assert find_chains(Place("", tensors)) == ()
