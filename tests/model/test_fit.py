"""Finding a model's weights in a checkpoint: what fits, what must be chosen, what is said when none does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nndiag.errors import ModelError, NndiagError, UsageError
from nndiag.model.fit import Fit, fit, load
from nndiag.model.sequential import build_sequential


@dataclass(frozen=True)
class Place:
    key: str
    tensors: Mapping[str, Tensor]


def net() -> nn.Sequential:
    return build_sequential([["Linear", 4, 3], ["ReLU"], ["Linear", 3, 2]])


def state(prefix: str = "", seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        prefix + name: torch.randn(value.shape, generator=generator)
        for name, value in net().state_dict().items()
    }


def problem(kind: type[NndiagError], *places: Place, model: nn.Module | None = None, **options: str) -> str:
    with pytest.raises(kind) as caught:
        fit(model or net(), places, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_plain_state_dict_fits_without_a_word() -> None:
    held = state()
    found = fit(net(), [Place("", held)])
    assert (found.place, found.prefix, found.left_out, found.note) == ("", "", 0, "")
    assert list(found.tensors) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found.tensors["2.bias"] is held["2.bias"]


@pytest.mark.parametrize("prefix", ["module.", "model.", "q_net.q_net.", "_orig_mod.", "a.0.weight."])
def test_a_prefix_is_found(prefix: str) -> None:
    found = fit(net(), [Place("state_dict", state(prefix))])
    assert found.prefix == prefix
    assert found.note == f'weights taken from "state_dict" under prefix "{prefix}" (4 tensors)'


def test_other_entries_are_left_out_aloud() -> None:
    other = {"head.weight": torch.ones(2), "loss.scale": torch.ones(())}
    found = fit(net(), [Place("", state("model.") | other)])
    assert found.left_out == 2
    assert (
        found.note
        == 'weights taken from the top level under prefix "model." (4 tensors); 2 other entries left out'
    )
    assert found.entries[-1] == "loss.scale"


def test_one_place_among_several_is_named() -> None:
    found = fit(net(), [Place("", {"x": torch.ones(1)}), Place("net", state())])
    assert (found.place, found.note) == ("net", 'weights taken from "net" (4 tensors)')


def test_a_name_that_ends_alike_is_no_prefix() -> None:
    line = problem(ModelError, Place("", {f"1{name}": value for name, value in state().items()}))
    assert "4 missing (0.weight, 0.bias, 2.weight, 2.bias), 4 unexpected (10.bias," in line


def test_an_extra_entry_under_the_prefix_does_not_fit() -> None:
    line = problem(ModelError, Place("", state("model.") | {"model.4.weight": torch.ones(1)}))
    assert line == (
        'weights from the top level under prefix "model.": they do not fit the model: '
        "1 unexpected (4.weight); give the model that was trained, "
        "or say where its weights lie with --weights-key and --strip-prefix"
    )
    assert "1 unexpected (4.weight)" in problem(ModelError, Place("", state() | {"4.weight": torch.ones(1)}))


def test_two_prefixes_that_fit_need_the_option() -> None:
    place = Place("", state("online.") | state("target."))
    line = problem(UsageError, place)
    assert line == (
        'weights: 2 sets of them fit the model: prefix "online.", prefix "target."; '
        "choose with --strip-prefix online. or --strip-prefix target."
    )
    for option in ("target.", "target"):
        found = fit(net(), [place], strip_prefix=option)
        assert torch.equal(found.tensors["0.bias"], place.tensors["target.0.bias"])
        assert found.left_out == 4


def test_two_places_that_fit_need_the_option() -> None:
    places = [Place("model", state()), Place("ema", state("module.", seed=2))]
    assert problem(UsageError, *places) == (
        'weights: 2 sets of them fit the model: "model", "ema" under prefix "module."; '
        "choose with --weights-key model or --weights-key ema"
    )
    assert fit(net(), places, weights_key="ema").prefix == "module."
    assert fit(net(), places, strip_prefix="module").place == "ema"
    assert fit(net(), places, strip_prefix="").place == "model"


def test_a_key_may_stop_above_the_place() -> None:
    places = [Place("model", state()), Place("ema.shadow", state(seed=2))]
    assert fit(net(), places, weights_key="ema").place == "ema.shadow"
    both = [*places, Place("ema.slow", state())]
    with pytest.raises(UsageError, match=r'"ema.shadow", "ema.slow"; choose with --weights-key ema.shadow'):
        fit(net(), both, weights_key="ema")


def test_an_unknown_key_where_there_is_one_place_alone() -> None:
    with pytest.raises(UsageError, match="no such place; leave it out: there is one place alone"):
        fit(net(), [Place("", state())], weights_key="model")


def test_extra_state_is_no_weight() -> None:
    assert fit(net(), [Place("", state() | {"2._extra_state": torch.ones(3)})]).left_out == 1


def test_a_key_may_lead_into_a_place() -> None:
    place = Place("state_dict", state("online.") | state("target."))
    assert fit(net(), [place], weights_key="state_dict.target").prefix == "target."
    top = Place("", state("agent.online.") | state("agent.target."))
    assert fit(net(), [top], weights_key="agent", strip_prefix="online").prefix == "agent.online."


def test_unknown_options_name_what_there_is() -> None:
    places = [Place("model", state("net.") | {"other.b": torch.ones(1)}), Place("ema", state("net."))]
    assert problem(UsageError, *places, weights_key="modle") == (
        '--weights-key modle: the checkpoint has no such place; take one of "model", "ema", or leave it out'
    )
    assert problem(UsageError, *places, strip_prefix="nte") == (
        '--strip-prefix nte: no entry of the checkpoint has this prefix; the prefixes there are: "net."'
    )
    assert problem(UsageError, Place("", {"a.b": torch.ones(1)}), strip_prefix="c").endswith(
        'there are: "a."'
    )


def test_a_known_prefix_that_does_not_fit_is_a_model_error() -> None:
    place = Place("", state("net.") | {"other.b": torch.ones(1)})
    assert 'under prefix "other.": they do not fit the model: 4 missing' in problem(
        ModelError, place, strip_prefix="other"
    )


def test_shapes_are_shown_on_both_sides() -> None:
    held = state() | {"2.weight": torch.ones(5, 3), "2.bias": torch.ones(())}
    line = problem(ModelError, Place("", held))
    assert "2 of another shape (2.weight: file 5x3, model 2x3, 2.bias: file scalar, model 2)" in line
    assert "give the model the sizes that were trained: by --model-arg" in line


def test_the_nearest_candidate_is_described() -> None:
    near = state("a.") | {"a.2.bias": torch.ones(7)}
    far = {name: torch.ones(9) for name in state("b.")}
    assert 'prefix "a.": they do not fit the model: 1 of another shape (2.bias: file 7' in problem(
        ModelError, Place("", far | near)
    )


def test_five_are_listed_then_a_count() -> None:
    model = build_sequential([["Linear", 2, 2]] * 4)
    line = problem(ModelError, Place("", {"0.weight": torch.ones(2, 2)}), model=model)
    assert "7 missing (0.bias, 1.weight, 1.bias, 2.weight, 2.bias, 2 more)" in line


def test_nothing_in_common_and_nothing_at_all() -> None:
    line = problem(ModelError, Place("", {"a": torch.ones(1)}))
    assert "4 missing (0.weight, 0.bias, 2.weight, 2.bias), 1 unexpected (a)" in line
    assert problem(ModelError, Place("", {})).startswith("weights: the checkpoint holds no tensors; ")
    assert problem(ModelError).startswith("weights: the checkpoint holds no tensors; ")
    assert problem(ModelError, Place("", state()), model=nn.ReLU()).startswith("model: has no parameters; ")


def test_names_in_the_file_cannot_steer_a_terminal() -> None:
    evil = "\x1b[31m\n::error ::x."
    line = problem(ModelError, Place("", {f"{evil}{i}": torch.ones(1) for i in range(3)}))
    assert "\x1b" not in line
    assert r"\x1b[31m\n::error ::x.0" in line
    note = fit(net(), [Place("", state(evil))]).note
    assert note.isprintable()
    choice = problem(UsageError, Place("", state("a; rm -rf x.") | state("b.")))
    assert "--strip-prefix 'a; rm -rf x.'" in choice
    assert len(problem(ModelError, Place("", {"x" * 10_000: torch.ones(1)}))) < 500


def test_hostile_names_take_no_time() -> None:
    held = {f"{'a.' * (i % 50)}{i}.weight": torch.ones(1) for i in range(20_000)}
    held["." * 200_000] = torch.ones(1)
    assert "1 missing" in problem(ModelError, Place("", held), model=nn.Linear(1, 1))


def test_only_what_is_needed_is_read() -> None:
    class Reading(dict[str, Tensor]):
        def __init__(self, *arguments: Mapping[str, Tensor]) -> None:
            super().__init__(*arguments)
            self.read: set[str] = set()

        def __getitem__(self, name: str) -> Tensor:
            self.read.add(name)
            return super().__getitem__(name)

    held = Reading(state("net.") | {"big": torch.ones(1), "old.0.weight": torch.ones(3, 4)})
    fit(net(), [Place("", held)])
    assert held.read == set(state("net."))


def test_tied_parameters_and_buffers_fit() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(5, 3), nn.BatchNorm1d(3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    source, target = Tied(), Tied()
    source.norm.running_mean += 3
    load(target, fit(target, [Place("", source.state_dict())]))
    assert torch.equal(target.head.weight, source.embedding.weight)
    assert target.head.weight is target.embedding.weight
    assert torch.equal(target.norm.running_mean, source.norm.running_mean)


def test_loading_casts_and_keeps_what_is_not_finite() -> None:
    held = {name: value.double() for name, value in state().items()}
    held["0.bias"] = torch.tensor([float("nan"), float("inf"), 1.0], dtype=torch.float16)
    model = net()
    weight = model.get_parameter("0.weight")
    load(model, fit(model, [Place("", held)]))
    assert model.get_parameter("0.weight") is weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, held["0.weight"].float())
    assert weight.requires_grad
    bias = model.get_parameter("0.bias")
    assert bias.isnan().tolist() == [True, False, False]
    assert bias.isinf().tolist() == [False, True, False]


def test_quantised_codes_are_no_weights() -> None:
    held = state() | {"0.weight": torch.ones(3, 4, dtype=torch.int8)}
    line = problem(ModelError, Place("", held))
    assert "1 of another type (0.weight: file int8, model float32); give the checkpoint before" in line


def test_a_model_that_renames_on_loading_is_said() -> None:
    model = net()
    model.register_load_state_dict_pre_hook(
        lambda module, held, *rest: held.update({"new": held.pop("0.bias")})
    )
    with pytest.raises(ModelError, match=r"the model does not take 0\.bias"):
        load(model, fit(model, [Place("", state())]))
    with pytest.raises(ModelError, match=r"cannot be loaded \(RuntimeError"):
        load(net(), Fit({"0.bias": torch.ones(9)}, "", "", 0, ""))


CASES = os.environ.get("NNDIAG_CASES")
needs_cases = pytest.mark.skipif(
    not CASES, reason="NNDIAG_CASES does not name the folder of public checkpoints"
)


def saved(*path: str) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(Path(CASES or "", *path), weights_only=True, map_location="cpu")
    return content


@needs_cases
def test_an_agent_holds_two_networks() -> None:
    place = Place("", saved("dqn_CartPole-v1", "policy.pth"))
    model = build_sequential(
        [["Linear", 4, 256], ["ReLU"], ["Linear", 256, 256], ["ReLU"], ["Linear", 256, 2]]
    )
    line = problem(UsageError, place, model=model)
    assert '"q_net.q_net."' in line
    assert '"q_net_target.q_net."' in line
    assert line.endswith("choose with --strip-prefix q_net.q_net. or --strip-prefix q_net_target.q_net.")
    found = fit(model, [place], strip_prefix="q_net.q_net.")
    load(model, found)
    assert torch.equal(model.get_parameter("4.weight"), place.tensors["q_net.q_net.4.weight"])
    assert found.left_out == 6


@needs_cases
@pytest.mark.parametrize("name", ["v0-epoch=2-step=2580", "v3-epoch=2-step=645", "v6-epoch=2-step=645"])
def test_a_lightning_checkpoint_fits_with_no_option(name: str) -> None:
    content = saved("lightning_mnist", f"{name}.ckpt")
    places = [
        Place(key, value)
        for key, value in content.items()
        if isinstance(value, dict) and all(isinstance(entry, Tensor) for entry in value.values())
    ]
    hidden = [["ReLU"], ["Dropout", 0.1]]
    model = build_sequential(
        [
            ["Flatten"],
            ["Linear", 784, 64],
            *hidden,
            ["Linear", 64, 64],
            *hidden,
            ["Linear", 64, 10],
            ["LogSoftmax", 1],
        ]
    )
    found = fit(model, places)
    assert found.note.startswith('weights taken from "state_dict" under prefix "model." (6 tensors)')
    load(model, found)
