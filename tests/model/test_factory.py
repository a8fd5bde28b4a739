"""Networks from the user's code, and from a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nndiag.config.load import load_run_config, load_user_config
from nndiag.errors import InputError, ModelError, UsageError
from nndiag.model.factory import build_model, parse_arguments
from nndiag.model.from_config import build_from_config

CODE = """
import torch
from torch import nn
def build(width=3, name="x"):
    print("building")
    return nn.Sequential(nn.Linear(2, width), nn.ReLU())
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(4), persistent=False)
def fails(): raise RuntimeError("no\\nweights here")
def wrong(): return 3
def lazy(): return nn.Sequential(nn.LazyLinear(3))
def meta():
    with torch.device("meta"):
        return nn.Linear(2, 3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(CODE)
    return tmp_path


def test_a_factory_gets_its_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model("model.py:build", folder, parse_arguments(["width=5", 'name="abc"']))
    assert model.state_dict()["0.weight"].shape == (5, 2)
    assert model.training
    assert capsys.readouterr().out == ""


def test_random_parts_repeat_and_the_random_state_stays(folder: Path) -> None:
    before = torch.get_rng_state()
    one, other = (build_model("model.py:Net", folder) for _ in range(2))
    assert torch.equal(one.get_buffer("frequencies"), other.get_buffer("frequencies"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("model.py:fails", "raised RuntimeError: no weights here"),
        ("model.py:wrong", "returned an object of type int, not a torch.nn.Module"),
        ("model.py:lazy", "0.weight has no shape yet"),
        ("model.py:meta", "weight lies on the meta device"),
    ],
)
def test_a_factory_that_fails_is_a_model_error(folder: Path, spec: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(spec, folder)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"--model {spec}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_that_do_not_fit_the_factory_are_said(folder: Path) -> None:
    with pytest.raises(ModelError, match="unexpected keyword argument 'depth'"):
        build_model("model.py:build", folder, {"depth": 3})


def test_arguments_are_json() -> None:
    pairs = ["a=1", "b=1e-3", "c=true", 'd="x=y"', "e=[1, 2]", 'f={"k": null}']
    assert parse_arguments(pairs) == {"a": 1, "b": 1e-3, "c": True, "d": "x=y", "e": [1, 2], "f": {"k": None}}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            ["width=abc"],
            "--model-arg width=abc: abc is not JSON; a string needs quotes: --model-arg 'width=\"abc\"'",
        ),
        (["flag=True"], "--model-arg flag=True: True is not JSON; write flag=true"),
        (
            ["width="],
            "--model-arg width=: nothing is not JSON; a string needs quotes: --model-arg 'width=\"\"'",
        ),
        (["width"], "--model-arg width: is not of the form NAME=VALUE; write e.g. --model-arg width=128"),
        (["1x=2"], "--model-arg 1x=2: is not of the form NAME=VALUE; write e.g. --model-arg width=128"),
        (["a=1", "a=2"], "--model-arg a=2: a is given twice; keep one"),
    ],
)
def test_wrong_arguments_are_usage_errors(pairs: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(pairs)
    assert str(caught.value) == said


def test_a_layer_list_of_a_run_needs_no_trust(tmp_path: Path) -> None:
    (tmp_path / "nndiag.toml").write_text('[model]\nsequential = [["Linear", 2, 3]]')
    assert isinstance(build_from_config(load_run_config(tmp_path), trust=False), nn.Sequential)
    (tmp_path / "nndiag.toml").write_text('[model]\nsequential = [["Lin", 2, 3]]')
    with pytest.raises(UsageError) as caught:
        build_from_config(load_run_config(tmp_path), trust=False)
    assert str(caught.value).startswith(f"{tmp_path / 'nndiag.toml'} [model] sequential entry 0: ")


def test_a_factory_of_a_run_runs_with_trust_alone(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "m.py").write_text(
        f"from torch import nn\nopen({str(marker)!r}, 'w')"
        ".close()\ndef build(width): return nn.Linear(width, 1)"
    )
    (tmp_path / "nndiag.toml").write_text('[model]\nfactory = "m.py:build"\nkwargs = {width = 4}')
    config = load_run_config(tmp_path)
    with pytest.raises(InputError) as caught:
        build_from_config(config, trust=False)
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        f'{tmp_path / "nndiag.toml"} [model]: input refused: factory = "m.py:build" is code that the scanned '
        "directory brings; read it, then add --trust to let it run"
    )
    assert not marker.exists()
    model = build_from_config(config, trust=True)
    assert marker.exists()
    assert model is not None
    assert model.state_dict()["weight"].shape == (1, 4)


def test_the_users_own_factory_is_found_from_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pyproject.toml").write_text('[tool.nndiag.model]\nfactory = "model.py:build"')
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")
    assert isinstance(build_from_config(load_user_config(Path()), trust=False), nn.Sequential)


def test_no_model_is_none(tmp_path: Path) -> None:
    assert build_from_config(load_run_config(tmp_path), trust=False) is None


def test_hyper_parameters_of_a_checkpoint_are_defaults_of_what_a_factory_takes_by_name(folder: Path) -> None:
    notes: list[str] = []
    offered = {"width": 5, "name": "os.system", "lr": 0.1}
    model = build_model("model.py:build", folder, {"name": "mine"}, offered=offered, note=notes.append)
    assert model.state_dict()["0.weight"].shape == (5, 2)
    assert notes == ["hyper-parameters in the checkpoint given to model.py:build: width=5"]
    assert build_model("model.py:build", folder, {"width": 4}, offered=offered)
    assert build_model("model.py:Net", folder, offered=offered)
