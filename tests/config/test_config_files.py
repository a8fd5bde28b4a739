"""Reading ``nndiag.toml`` and ``[tool.nndiag]``: what is accepted, and one line for the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nndiag.config.load import load_run_config, load_user_config
from nndiag.config.toml_file import LARGEST
from nndiag.errors import UsageError

FULL = """
[model]
sequential = [["Linear", 64, 128], ["ReLU"], ["Conv2d", 1, 6, 3, {padding = 1}]]
[checkpoints]
include = "epoch_*.safetensors"
[probe]
data = "probe.safetensors"
loss = "cross_entropy"
limit = 100
batch_size = 32
[optimizer]
name = "adam"
lr = 1e-3
momentum = 0
betas = [0.9, 0.999]
weight_decay = 0.01
horizon = 1000
[policy]
max_degenerate_fraction = 0.10
max_dead_fraction = 1
max_new_degenerate = 0
max_regression = 0.5
min_effective_rank = 3.5
forbid = ["ND101", "ND4"]
[actions]
goal = "deploy"
init = "orthogonal"
[rules]
select = ["ND2"]
ignore = ["ND205"]
thresholds = {dormancy = 0.1, rank = 2}
"""


def write(folder: Path, text: str, name: str = "nndiag.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def problem(folder: Path, text: str) -> str:
    """What is said about an nndiag.toml, without the path before its name."""
    with pytest.raises(UsageError) as caught:
        load_run_config(write(folder, text))
    assert caught.value.exit_code == 2
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{folder}/")
    return line.removeprefix(f"{folder}/")


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path, FULL))
    assert config.model.sequential == (
        ("Linear", 64, 128),
        ("ReLU",),
        ("Conv2d", 1, 6, 3, {"padding": 1}),
    )
    assert config.checkpoints.include == "epoch_*.safetensors"
    assert (config.probe.data, config.probe.loss) == ("probe.safetensors", "cross_entropy")
    assert (config.probe.limit, config.probe.batch_size) == (100, 32)
    assert config.optimizer.betas == (0.9, 0.999)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.horizon) == ("adam", 1e-3, 1000.0)
    assert (config.policy.max_dead_fraction, config.policy.max_new_degenerate) == (1.0, 0)
    assert config.policy.forbid == ("ND101", "ND4")
    assert (config.actions.goal, config.actions.init) == ("deploy", "orthogonal")
    assert config.rules.thresholds == {"dormancy": 0.1, "rank": 2.0}
    assert config.folder == tmp_path
    assert config.source == str(tmp_path / "nndiag.toml")
    assert config.origin("probe.data").owner == "run"


def test_the_file_beside_a_checkpoint_counts(tmp_path: Path) -> None:
    write(tmp_path, '[probe]\ndata = "x.npz"')
    checkpoint = tmp_path / "epoch_1.safetensors"
    checkpoint.touch()
    assert load_run_config(checkpoint).probe.data == "x.npz"


def test_no_file_is_an_empty_configuration(tmp_path: Path) -> None:
    config = load_run_config(tmp_path)
    assert (config.source, dict(config.origins), config.folder) == ("", {}, tmp_path)
    assert config.probe.data is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[probe]\ndta = "x"', 'nndiag.toml [probe]: unknown key "dta"; did you mean "data"?'),
        ("[optimiser]\nlr = 1", 'nndiag.toml: unknown table "optimiser"; did you mean "optimizer"?'),
        ("[actions]\nzzzz = 1", 'nndiag.toml [actions]: unknown key "zzzz"; write one of goal, init'),
        (
            '[probe]\nlimit = "x"\ndta = 1',
            'nndiag.toml [probe]: unknown key "dta"; did you mean "data"?',
        ),
        (
            '[optimizer]\nlr = "1e-3"',
            'nndiag.toml [optimizer]: lr is "1e-3", expected a number; correct its value',
        ),
        (
            "[optimizer]\nlr = true",
            "nndiag.toml [optimizer]: lr is true, expected a number; correct its value",
        ),
        (
            "[optimizer]\nlr = nan",
            "nndiag.toml [optimizer]: lr is NaN, expected a finite number; correct its value",
        ),
        (
            "[optimizer]\nbetas = [0.9]",
            "nndiag.toml [optimizer]: betas is [0.9], expected a list with more elements; correct its value",
        ),
        (
            '[optimizer]\nname = "lion"',
            "nndiag.toml [optimizer]: name is \"lion\", expected 'sgd', 'adam' or 'adamw'; correct its value",
        ),
        (
            "[probe]\nlimit = 0",
            "nndiag.toml [probe]: limit is 0, expected a number of at least 1; correct its value",
        ),
        (
            "[probe]\nlimit = 1.5",
            "nndiag.toml [probe]: limit is 1.5, expected a whole number; correct its value",
        ),
        ("probe = 3", "nndiag.toml: probe is 3, expected a table; correct its value"),
        (
            '[policy]\nforbid = "ND1"',
            'nndiag.toml [policy]: forbid is "ND1", expected a list; correct its value',
        ),
        (
            "[rules]\nthresholds = {rank = [1]}",
            "nndiag.toml [rules]: thresholds.rank is [1], expected a number; correct its value",
        ),
        (
            '[model]\nsequential = [["ReLU"]]\nfactory = "m.py:build"',
            "nndiag.toml [model]: sequential and factory exclude each other; keep the one that is meant",
        ),
        (
            "[probe]\ndata = what",
            "nndiag.toml: is not valid TOML: Invalid value (at line 2, column 8); correct it there",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    assert problem(tmp_path, text) == said


def test_kwargs_need_a_factory(tmp_path: Path) -> None:
    assert "there is no factory" in problem(tmp_path, "[model]\nkwargs = {width = 1}")


def test_hostile_files_end_in_one_line(tmp_path: Path) -> None:
    assert "not valid TOML" in problem(tmp_path, "a = " + "[" * 100_000)
    assert "not valid TOML" in problem(tmp_path, "a = " + "1" * 5000)
    assert "1024 KiB" in problem(tmp_path, "#" * (LARGEST + 1))
    (tmp_path / "nndiag.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(UsageError, match="is not UTF-8 at byte 5"):
        load_run_config(tmp_path)
    said = problem(tmp_path, '[probe]\n"\\u001b[31m\\n::error" = 1')
    assert r'"\x1b[31m\n::error"' in said


def test_the_users_table_is_found_in_a_parent(tmp_path: Path) -> None:
    write(tmp_path, '[tool.nndiag.probe]\nloss = "mse"', "pyproject.toml")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    write(tmp_path / "a", '[project]\nname = "x"', "pyproject.toml")
    config = load_user_config(inner)
    assert config.probe.loss == "mse"
    assert config.folder == tmp_path
    assert config.origin("probe.loss").owner == "user"


def test_the_users_table_is_held_to_the_same(tmp_path: Path) -> None:
    write(tmp_path, "[tool.nndiag.optimizer]\nmomentom = 0.9", "pyproject.toml")
    with pytest.raises(UsageError) as caught:
        load_user_config(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'pyproject.toml'} [tool.nndiag.optimizer]: "
        'unknown key "momentom"; did you mean "momentum"?'
    )
    write(tmp_path, "[tool]\nnndiag = 3", "pyproject.toml")
    with pytest.raises(UsageError, match=r"tool\.nndiag is not a table"):
        load_user_config(tmp_path)


def test_without_a_table_the_users_configuration_is_empty(tmp_path: Path) -> None:
    assert load_user_config(tmp_path).source == ""


def test_configuration_imports_no_torch() -> None:
    rooms = "nndiag.config.load, nndiag.config.callables, nndiag.config.trust"
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
