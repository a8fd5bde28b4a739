"""Probes from the user's code."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nndiag.errors import InputError, NndiagError, UsageError
from nndiag.probe.data import Data, load_data

CODE = """
import random
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
drawn = []
def x(): return X
def array(): return X.numpy()
def pair(): return X, Y
def single(): return (X,)
def two_inputs(): return (X, X + 1), Y
def named(): return {"x": X, "y": Y, "mask": Y}
def loader(): return DataLoader(TensorDataset(X, Y), batch_size=4)
def shuffled(): return DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
def dataset(): return TensorDataset(X, Y)
def batches_of_x(): return [X[:4], X[4:]]
def batches_of_dicts(): return [{"x": X[:4], "y": Y[:4]}, {"x": X[4:], "y": Y[4:]}]
def batches_of_two_inputs(): return [((X, X), Y), [[X, X], Y]]
def forever():
    while True:
        drawn.append(1)
        yield X, Y
def random_parts():
    return torch.tensor([[torch.rand(()).item(), np.random.rand(), random.random()]])
def noisy():
    print("loading the data")
    return X
def fails(): raise OSError("no\\ndisk")
def fails_later():
    yield X
    raise OSError("no disk")
def number(): return 3
def none(): return None
def nothing(): return []
def ragged(): return [torch.ones(2, 5), torch.ones(2, 7)]
def scalars(): return [torch.tensor(1.0), torch.tensor(2.0)]
def uneven(): return [(X, Y), X]
def triple(): return X, Y, Y
def strings(): return ["a", "b"]
def bert(): return [{"input_ids": X, "labels": Y}]
def not_finite(): return X / 0
def with_history(): return torch.ones(2, 2, requires_grad=True) * 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(CODE)
    return tmp_path


def load(name: str, folder: Path, **options: int) -> Data:
    return load_data(f"data.py:{name}", folder, **options)


@pytest.mark.parametrize("name", ["x", "array", "single", "batches_of_x"])
def test_inputs_alone(folder: Path, name: str) -> None:
    data = load(name, folder)
    assert data.targets is None
    assert torch.equal(data.inputs[0], torch.arange(20.0).reshape(10, 2))
    assert data.source == f"data.py:{name}"


@pytest.mark.parametrize("name", ["pair", "named", "loader", "dataset", "batches_of_dicts"])
def test_inputs_and_targets(folder: Path, name: str) -> None:
    data = load(name, folder)
    assert torch.equal(data.inputs[0], torch.arange(20.0).reshape(10, 2))
    assert data.targets is not None
    assert torch.equal(data.targets, torch.arange(10))
    assert data.notes == (("probe: mask not used",) if name == "named" else ())
    assert data.sha256 == load("pair", folder).sha256
    assert data.sha256 != load("x", folder).sha256


@pytest.mark.parametrize(("name", "samples"), [("two_inputs", 10), ("batches_of_two_inputs", 20)])
def test_several_inputs(folder: Path, name: str, samples: int) -> None:
    data = load(name, folder)
    assert len(data.inputs) == 2
    assert data.samples == samples


def test_limit_draws_no_more_batches_than_it_needs(folder: Path) -> None:
    data = load("forever", folder, limit=25)
    assert data.samples == 25
    assert load("loader", folder, limit=4).samples == 4
    assert load("x", folder, limit=3).inputs[0].tolist() == [[0, 1], [2, 3], [4, 5]]
    (folder / "count.py").write_text(
        "import torch\nleft = iter([torch.ones(4, 2)] * 3)\ndef data(): return left\ndef rest(): return left"
    )
    load_data("count.py:data", folder, limit=8)
    assert load_data("count.py:rest", folder).samples == 4


@pytest.mark.parametrize("name", ["shuffled", "random_parts"])
def test_random_data_repeat_with_the_seed_alone(folder: Path, name: str) -> None:
    one, same, other = (load(name, folder, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.inputs[0], same.inputs[0])
    assert one.sha256 == same.sha256
    assert not torch.equal(one.inputs[0], other.inputs[0])


@pytest.mark.parametrize("name", ["shuffled", "random_parts", "fails_later"])
def test_the_random_states_are_put_back(folder: Path, name: str) -> None:
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    try:
        load(name, folder)
    except InputError:
        assert name == "fails_later"
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert np.array_equal(np.random.get_state()[1], of_numpy)
    assert random.getstate() == of_python


def test_what_it_prints_goes_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("noisy", folder)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "loading the data\n")


def test_history_is_cut(folder: Path) -> None:
    assert not load("with_history", folder).inputs[0].requires_grad


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("fails", InputError, "raised OSError: no disk"),
        ("fails_later", InputError, "raised OSError: no disk"),
        (
            "number",
            InputError,
            "returned an object of type int; return x, (x, y), or an iterable of such batches",
        ),
        ("none", InputError, "returned an object of type NoneType"),
        ("nothing", InputError, "holds no samples; give at least one batch"),
        ("ragged", InputError, "the samples of x differ in shape, (5,) and (7,); pad them to one length"),
        ("scalars", InputError, "x is a single number in a batch"),
        ("uneven", InputError, "a batch holds x, the first one x, y; give every batch the same parts"),
        ("triple", InputError, "a batch is 3 parts; give x, (x, y), ((x0, x1), y), or a dict with x and y"),
        ("strings", InputError, "a batch is an object of type str"),
        ("bert", InputError, "holds input_ids, labels; give --model, whose inputs"),
        ("not_finite", InputError, "x holds 20 values that are not finite"),
        ("gone", UsageError, 'data.py has no "gone"'),
    ],
)
def test_what_goes_wrong_is_one_line(folder: Path, name: str, kind: type[NndiagError], said: str) -> None:
    with pytest.raises(kind) as caught:
        load(name, folder)
    assert said in str(caught.value)
    assert f"data.py:{name}" in str(caught.value)
    assert "\n" not in str(caught.value)
