"""Networks as lists of layers: what is built, and what is refused before anything is built."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from nndiag.errors import UsageError
from nndiag.model.sequential import LAYERS, build_sequential


def problem(*layers: object) -> str:
    with pytest.raises(UsageError) as caught:
        build_sequential(layers, "nndiag.toml [model] sequential")
    assert caught.value.exit_code == 2
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix("nndiag.toml [model] sequential").lstrip(": ")


def test_the_state_is_named_by_position() -> None:
    model = build_sequential([["Linear", 4, 3], ["ReLU"], ["Linear", 3, 2, {"bias": False}]])
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight"]
    assert model(torch.ones(5, 4)).shape == (5, 2)


def test_a_convolutional_network_runs() -> None:
    model = build_sequential(
        [
            ["Conv2d", 1, 6, [3, 3], {"padding": 1, "padding_mode": "zeros"}],
            ["BatchNorm2d", 6],
            ["LeakyReLU", 0.1, {"inplace": True}],
            ["MaxPool2d", 2],
            ["AdaptiveAvgPool2d", [2, 2]],
            ["Flatten"],
            ["Unflatten", 1, [6, 4]],
            ["Flatten", 1],
            ["LayerNorm", [24]],
            ["Dropout", 0.5],
            ["PReLU"],
            ["Linear", 24, 10],
            ["LogSoftmax", {"dim": 1}],
        ]
    )
    assert model(torch.ones(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", LAYERS)
def test_every_known_layer_can_be_built(name: str) -> None:
    arguments: dict[str, list[object]] = {
        "Linear": [2, 3],
        "Embedding": [5, 3],
        "GroupNorm": [2, 4],
        "LayerNorm": [4],
        "RMSNorm": [4],
        "Unflatten": [1, [2, 2]],
        "Threshold": [0.1, 0],
    }
    size = {"Conv": [2, 3, 1], "Batch": [4], "Insta": [4], "MaxPo": [2], "AvgPo": [2], "Adapt": [1]}
    given = arguments.get(name) or next((size[key] for key in size if name.startswith(key)), [])
    assert type(build_sequential([[name, *given]])[0]) is getattr(nn, name)


def test_initial_weights_repeat_and_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    one, other = (build_sequential([["Linear", 4, 3]]).state_dict() for _ in range(2))
    assert torch.equal(one["0.weight"], other["0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (["Linaer", 1, 2], 'entry 0: unknown layer "Linaer"; did you mean "Linear"?'),
        (["relu"], 'entry 0: unknown layer "relu"; did you mean "ReLU"?'),
        (
            "ReLU",
            'entry 0: is not a list that begins with a layer\'s name; write ["Linear", 64, 10]',
        ),
        ([], 'entry 0: is not a list that begins with a layer\'s name; write ["Linear", 64, 10]'),
        ([["Linear"]], 'entry 0: is not a list that begins with a layer\'s name; write ["Linear", 64, 10]'),
        (
            ["Linear", 3],
            "entry 0 (Linear): missing a required argument: 'out_features'; "
            "write the arguments of torch.nn.Linear",
        ),
        (
            ["Linear", 3, 2, {"bais": False}],
            "entry 0 (Linear): got an unexpected keyword argument 'bais'; "
            "write the arguments of torch.nn.Linear",
        ),
    ],
)
def test_a_wrong_layer_is_said_in_one_line(layer: object, said: str) -> None:
    assert problem(layer) == said


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (["TransformerEncoder"], "need a factory"),
        (["Sequential", ["ReLU"]], 'unknown layer "Sequential"'),
        (["__class__"], 'unknown layer "__class__"'),
        (["functional.relu"], 'unknown layer "functional.relu"'),
        (["Linear", 3.5, 2], "torch refuses its arguments (TypeError"),
        (["Linear", -3, 2], "torch refuses its arguments (RuntimeError"),
        (["Linear", 10**30, 2], "torch refuses its arguments ("),
        (["Linear", 2**40, 2**40], "torch refuses its arguments ("),
        (["Linear", 2**16, 2**16], "more than the checkpoint can"),
        (["Linear", 0, 2], "has a parameter of size 0"),
        (["Dropout", 2], "torch refuses its arguments (ValueError: dropout probability"),
        (["GroupNorm", 3, 4], "(4) must be divisible"),
        (["Linear", 3, 2, True, "cuda"], 'the argument "device" cannot be given here'),
        (["Linear", 3, 2, {"dtype": "float64"}], 'the argument "dtype" cannot be given here'),
        (["Embedding", 3, 2, {"_weight": [1, 2]}], 'the argument "_weight" cannot be given here'),
        (["AvgPool2d", [1.5, 2]], "an argument is of type list"),
        (["Linear", 3, {"a": 1}, 2], "an argument is of type dict"),
        (["Linear", 3, 2, {"bias": {"a": 1}}], "an argument is of type dict"),
    ],
)
def test_what_is_refused(layer: object, said: str) -> None:
    assert said in problem(layer)


def test_absurd_sizes_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "more than the checkpoint can" in problem(*[["Linear", 2**15, 2**15]] * 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_no_layers_is_an_error() -> None:
    assert problem() == 'holds no layer; list the layers, e.g. ["Linear", 64, 10]'


def test_control_characters_are_escaped() -> None:
    assert r"\x1b[2J\n::error" in problem(["\x1b[2J\n::error"])
