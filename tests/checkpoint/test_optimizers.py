from __future__ import annotations

from pathlib import Path

import torch

from nndiag.checkpoint.optimizers import find_optimizers, is_optimizer, sibling_of

PATH = Path("x.pt")


def test_groups_keep_plain_values_only() -> None:
    group = {
        "lr": torch.tensor(0.5),
        "betas": [0.9, 0.999],
        "foreach": None,
        "hook": object(),
        "big": torch.ones(2),
    }
    (saved,) = find_optimizers(PATH, {"optim": {"state": {}, "param_groups": [group, "odd"]}})
    assert saved.groups == ({"lr": 0.5, "betas": (0.9, 0.999), "foreach": None},)


def test_state_keeps_tensors_and_numbers_by_index_and_by_name() -> None:
    buffer = torch.ones(2)
    state = {
        0: {"step": torch.tensor(4.0), "momentum_buffer": buffer, "odd": object()},
        "w": {"step": 4},
        1: None,
    }
    (saved,) = find_optimizers(PATH, {"state": state, "param_groups": []})
    assert saved.key == ""
    assert saved.state[0]["step"] == 4.0
    assert torch.equal(saved.state[0]["momentum_buffer"], buffer)  # type: ignore[arg-type]
    assert set(saved.state[0]) == {"step", "momentum_buffer"}
    assert saved.state["w"] == {"step": 4}
    assert saved.state[1] == {}


def test_every_optimizer_is_found_with_its_key() -> None:
    one = {"state": {}, "param_groups": []}
    tree = {"optimizer": one, "gan": {"generator": dict(one)}, "optimizer_states": [dict(one), dict(one)]}
    assert [saved.key for saved in find_optimizers(PATH, tree)] == [
        "optimizer",
        "gan.generator",
        "optimizer_states.0",
        "optimizer_states.1",
    ]


def test_half_an_optimizer_is_none() -> None:
    assert not is_optimizer({"state": {}})
    assert not is_optimizer({"state": [], "param_groups": []})
    assert not is_optimizer({"state": {}, "param_groups": {}})


def test_list_that_contains_itself_is_visited_once() -> None:
    loop: list[object] = []
    loop.extend([loop] * 100)
    assert find_optimizers(PATH, {"optimizers": loop}) == ()


def test_sibling_name() -> None:
    assert sibling_of(Path("a/policy.pth")) == Path("a/policy.optimizer.pth")
