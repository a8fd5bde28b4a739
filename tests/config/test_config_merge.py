"""The run's file wins over the user's, key by key, and every key remembers where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from nndiag.config.load import load_run_config, load_user_config
from nndiag.config.record import RunConfig, merge
from nndiag.config.trust import require_trust
from nndiag.errors import InputError


def both(tmp_path: Path, user: str, run: str) -> RunConfig:
    """Merge a project's pyproject.toml with the nndiag.toml of a run inside the project."""
    (tmp_path / "pyproject.toml").write_text(user)
    folder = tmp_path / "runs" / "exp7"
    folder.mkdir(parents=True)
    (folder / "nndiag.toml").write_text(run)
    return merge(load_user_config(tmp_path), load_run_config(folder))


def test_the_run_wins_key_by_key(tmp_path: Path) -> None:
    config = both(
        tmp_path,
        '[tool.nndiag.probe]\ndata = "mine.npz"\nloss = "mse"\n[tool.nndiag.rules.thresholds]\na = 1\nb = 2',
        '[probe]\ndata = "theirs.npz"\n[rules.thresholds]\nb = 3\n[actions]\ngoal = "train"',
    )
    assert (config.probe.data, config.probe.loss, config.actions.goal) == ("theirs.npz", "mse", "train")
    assert config.rules.thresholds == {"a": 1.0, "b": 3.0}
    assert config.folder == tmp_path / "runs" / "exp7"
    assert config.origin("probe.data").folder == tmp_path / "runs" / "exp7"
    assert config.origin("probe.loss").folder == tmp_path
    with pytest.raises(KeyError):
        config.origin("probe.limit")


def test_a_model_is_one_choice(tmp_path: Path) -> None:
    config = both(
        tmp_path,
        '[tool.nndiag.model]\nfactory = "m.py:build"\nkwargs = {width = 3}',
        '[model]\nsequential = [["ReLU"]]',
    )
    assert config.model.sequential == (("ReLU",),)
    assert config.model.factory is None
    assert config.model.kwargs == {}
    assert "model.factory" not in config.origins


def test_the_users_own_factory_needs_no_trust(tmp_path: Path) -> None:
    config = both(tmp_path, '[tool.nndiag.model]\nfactory = "m.py:build"', "")
    assert require_trust(config, "model.factory", trust=False).folder == tmp_path


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model.factory", '[model]\nfactory = "m.py:build"'),
        ("probe.data", '[probe]\ndata = "m.py:data"'),
        ("probe.loss", '[probe]\nloss = "m.py:loss"'),
    ],
)
def test_code_of_the_scanned_directory_needs_trust(tmp_path: Path, key: str, text: str) -> None:
    config = both(tmp_path, "", text)
    with pytest.raises(InputError) as caught:
        require_trust(config, key, trust=False)
    assert caught.value.exit_code == 3
    assert "input refused" in str(caught.value)
    assert "--trust" in str(caught.value)
    assert require_trust(config, key, trust=True).owner == "run"


def test_a_pyproject_that_came_with_the_run_is_the_runs(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.nndiag.model]\nfactory = "m.py:build"')
    config = merge(load_user_config(tmp_path), load_run_config(tmp_path))
    with pytest.raises(InputError, match="--trust"):
        require_trust(config, "model.factory", trust=False)
