"""What an optimiser keeps, after entries went or start afresh: against torch's own optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nndiag.surgery.edits import Edits
from nndiag.surgery.writing.changes import ParameterChange
from nndiag.surgery.writing.moments import follow
from tests.surgery.writing.networks import HEALED, LIVING, healed, network, pruned, step, trained, written

Make = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


def change(before: Tensor, value: Tensor, kept: Any = None, reset: Tensor | None = None) -> ParameterChange:
    """What became of a parameter."""
    mask = torch.zeros(value.shape, dtype=torch.bool) if reset is None else reset
    return ParameterChange(before.shape, value, kept or (None,) * before.dim(), mask)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("edit", [healed, pruned])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_of_every_optimiser_of_torch_runs(
    tmp_path: Path, kind: str, edit: Callable[[nn.Module], Edits]
) -> None:
    model, optimizer = trained(lambda m: OPTIMIZERS[kind](m.parameters()))
    edits = edit(model)
    torch.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "a.pt")
    assert written(tmp_path / "a.pt", edits, tmp_path / "b.pt", model).notes == ()
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    again = network(4 if edits.kept else 6)
    again.load_state_dict(found["model"])
    resumed = OPTIMIZERS[kind](again.parameters())
    resumed.load_state_dict(found["optim"])
    for index, state in resumed.state_dict()["state"].items():
        for name, value in state.items():
            old = optimizer.state_dict()["state"][index][name]
            assert type(value) is type(old), name
            if isinstance(value, Tensor):
                assert value.dtype == old.dtype
                assert value.dim() == old.dim()
                assert bool(value.isfinite().all())
    before = {name: value.clone() for name, value in again.state_dict().items()}
    step(again, resumed)
    if kind not in ("adadelta", "rprop"):  # their first steps are tiny
        moved = (again[0].weight - before["0.weight"]).abs().amax()
        assert 0 < moved < 0.5  # RMSprop, which corrects nothing, begins with steps of ten times its rate
    assert all(bool(value.isfinite().all()) for value in again.state_dict().values())


def test_an_entry_that_starts_afresh_steps_as_far_as_the_living_do() -> None:
    """A healed entry with a usual gradient moves by about the learning rate, where zeros would take it six times as
    far; the entries that live on step as if nothing had happened.
    """
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(40, 30))
    optimizer = torch.optim.Adam([parameter], lr=1.0)
    for _ in range(2000):
        parameter.grad = torch.randn(40, 30)
        optimizer.step()
    state = optimizer.state[parameter]
    reset = torch.zeros(40, 30, dtype=torch.bool)
    reset[:10] = True
    followed = follow(state, change(parameter, parameter.detach(), reset=reset))
    assert followed.changed is not None
    for name in ("exp_avg", "exp_avg_sq"):
        new = followed.changed[name]
        assert isinstance(new, Tensor)
        assert torch.equal(new[10:], state[name][10:])
    assert "step" not in followed.changed

    def farthest(second: Tensor) -> float:
        """Return how far healed entries go in a step, in learning rates, in the mean over entries; at most."""
        trial = nn.Parameter(parameter.detach().clone())
        again = torch.optim.Adam([trial], lr=1.0)
        mean = followed.changed["exp_avg"] if followed.changed else None
        again.state[trial] = {
            "step": state["step"].clone(),
            "exp_avg": mean.clone(),
            "exp_avg_sq": second.clone(),
        }  # type: ignore[union-attr]
        most = 0.0
        for _ in range(25):
            old = trial.detach().clone()
            trial.grad = torch.ones(40, 30)
            again.step()
            most = max(most, float((trial.detach() - old)[:10].abs().mean()))
        return most

    ours = followed.changed["exp_avg_sq"]
    assert isinstance(ours, Tensor)
    assert farthest(ours) < 1.1
    assert farthest(torch.where(reset, 0.0, ours)) > 6.0


def test_a_parameter_of_which_nothing_lives_on_starts_as_new(tmp_path: Path) -> None:
    model, optimizer = trained()
    everything = torch.ones(6, 4, dtype=torch.bool)
    edits = Edits({"0.weight": torch.ones(6, 4)}, reset={"0.weight": everything})
    torch.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "a.pt")
    written(tmp_path / "a.pt", edits, tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)["optim"]["state"]
    assert [int(found[index]["step"]) for index in range(6)] == [0, 3, 3, 3, 3, 3]
    assert not found[0]["exp_avg"].any()
    assert not found[0]["exp_avg_sq"].any()
    again = network()
    resumed = torch.optim.Adam(again.parameters(), lr=0.01)
    resumed.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True)["optim"])
    before = again[0].weight.detach().clone()
    step(again, resumed)
    moved = (again[0].weight - before).abs()
    assert torch.allclose(moved[moved > 0], torch.tensor(0.01), rtol=1e-3)  # as Adam's first step is


def test_living_entries_that_never_had_a_gradient_count_as_none() -> None:
    state: dict[str, Any] = {"step": 900, "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    reset = torch.tensor([True, False, False, False])
    followed = follow(state, change(torch.zeros(4), torch.zeros(4), reset=reset))
    assert followed.changed is not None
    assert followed.changed["step"] == 0
    assert type(followed.changed["step"]) is int


def test_state_of_other_shapes_is_left_out_where_it_cannot_be_cut(tmp_path: Path) -> None:
    """As Adafactor keeps it: a mean for every row and every column."""
    model, _ = trained()
    sizes = [parameter.shape for parameter in model.parameters()]
    state = {
        index: {"step": 5, "exp_avg_sq_row": torch.ones(size[:-1]), "exp_avg_sq_col": torch.ones(size[-1:])}
        if len(size) == 2 else {"step": 5, "exp_avg_sq": torch.ones(size)}
        for index, size in enumerate(sizes)
    }  # fmt: skip
    groups = [{"lr": 0.1, "params": list(range(len(sizes)))}]
    value = {"model": model.state_dict(), "optim": {"state": state, "param_groups": groups}}
    torch.save(value, tmp_path / "a.pt")
    made = written(tmp_path / "a.pt", pruned(model), tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)["optim"]
    assert sorted(found["state"]) == [1, 2, 3, 5]
    assert found["state"][1]["exp_avg_sq"].shape == (4,)
    assert found["param_groups"] == groups
    assert len(made.notes) == 2
    assert "state of 0.weight cannot be cut down and was left out" in made.notes[0]
    made = written(tmp_path / "a.pt", healed(model), tmp_path / "c.pt", model)
    assert any("nobody knows a fresh start for the optimiser's exp_avg_sq_row" in note for note in made.notes)


def test_rows_and_columns_are_taken_together() -> None:
    before = torch.arange(24.0).view(4, 6)
    rows, columns = torch.tensor([0, 3]), torch.tensor([1, 2, 5])
    after = before[rows][:, columns]
    followed = follow({"exp_avg": before}, change(before, after, (rows, columns)))
    assert followed.changed is not None
    assert torch.equal(followed.changed["exp_avg"], after)  # type: ignore[arg-type]


def test_all_reset_entries_and_only_they_change() -> None:
    before = torch.rand(6) + 1
    reset = torch.zeros(6, dtype=torch.bool)
    reset[HEALED] = True
    state = {
        "exp_avg_sq": before,
        "max_exp_avg_sq": before * 2,
        "momentum_buffer": before,
        "step": torch.tensor(9.0),
    }
    followed = follow(state, change(before, before, reset=reset))
    assert followed.changed is not None
    median = before[LIVING].median()
    for name, fill in (("exp_avg_sq", median), ("max_exp_avg_sq", 2 * median), ("momentum_buffer", 0.0)):
        new = followed.changed[name]
        assert isinstance(new, Tensor)
        assert torch.equal(new[LIVING], state[name][LIVING])
        assert torch.equal(new[HEALED], torch.full((2,), float(fill)))
