"""The committed sample runs are what their facts.json says: all is counted again with plain torch."""

import json
import math
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).parents[2] / "sample_checkpoints"
RUNS = {path.parent.name: path.parent for path in sorted(ROOT.glob("*/nndiag.toml"))}
RELU_RUNS = ["healthy_mlp", "dying_mlp", "weight_decay_collapse", "small_cnn_bn"]
XOR_RUNS = ["xor_abs1", "xor_relu1"]
LOSSES = {"cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss}


def facts(name):
    return json.loads((RUNS[name] / "facts.json").read_text(encoding="utf-8"))


def settings(name):
    return tomllib.loads((RUNS[name] / "nndiag.toml").read_text(encoding="utf-8"))


def network(name, file, dtype=torch.float32):
    layers = []
    for kind, *arguments in settings(name)["model"]["sequential"]:
        keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        layers.append(getattr(nn, kind)(*arguments, **keywords))
    model = nn.Sequential(*layers)
    model.load_state_dict(load_file(RUNS[name] / file))
    return model.eval().to(dtype)


def probe(name, dtype=torch.float32):
    tensors = load_file(RUNS[name] / "probe.safetensors")
    x, y = tensors["x"].to(dtype), tensors["y"]
    return x, y.to(dtype) if y.is_floating_point() else y


def probe_loss(name, model):
    x, y = probe(name, next(model.parameters()).dtype)
    return LOSSES[settings(name)["probe"]["loss"]](model(x), y)


def count_dead(model, x):
    """Units per parametrised layer whose ReLU output never exceeds zero, by forward hooks."""
    dead, handles = {}, []

    def hook(layer):
        def keep(_module, _inputs, output):
            rises = (output > 0).movedim(1, -1).reshape(-1, output.shape[1]).any(0)
            dead[layer] = int((~rises).sum())

        return keep

    for position, module in enumerate(model):
        if isinstance(module, nn.Linear | nn.Conv2d):
            owner = str(position)
        if isinstance(module, nn.ReLU):
            handles.append(module.register_forward_hook(hook(owner)))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return dead


def block(name, model, layer, index):
    """The float64 Hessian of the probe loss in weight and bias of one Linear node."""
    module, (x, y) = model[int(layer)], probe(name, torch.float64)
    state = {key: value.detach() for key, value in model.named_parameters()}
    row = torch.zeros_like(module.bias)
    row[index] = 1

    def value(theta):
        weight = state[f"{layer}.weight"] * (1 - row)[:, None] + torch.outer(row, theta[:-1])
        bias = state[f"{layer}.bias"] * (1 - row) + row * theta[-1]
        changed = {**state, f"{layer}.weight": weight, f"{layer}.bias": bias}
        return LOSSES["mse"](torch.func.functional_call(model, changed, (x,)), y)

    theta = torch.cat([module.weight[index], module.bias[index : index + 1]]).detach()
    return torch.autograd.functional.hessian(value, theta)


def largest_eigenvalue(loss, parameters, shift=20.0, products=400):
    """Power iteration on H + shift·I, so that the largest eigenvalue wins and not the largest magnitude."""
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    vector = torch.randn(gradient.numel(), dtype=gradient.dtype, generator=torch.Generator().manual_seed(1))
    for _ in range(products):
        vector = vector / vector.norm()
        product = torch.autograd.grad(gradient @ vector, parameters, retain_graph=True)
        product = torch.cat([p.flatten() for p in product])
        rayleigh = float(vector @ product)
        vector = product + shift * vector
    return rayleigh


def test_all_runs_are_there_and_small():
    assert {*RELU_RUNS, *XOR_RUNS, "above_stability", "diverging", "two_cycle"} == set(RUNS)
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 5_000_000


@pytest.mark.parametrize("name", RUNS)
def test_run_directory_is_complete(name):
    config, files = settings(name), {path.name for path in RUNS[name].glob("*.safetensors")}
    included = {path.name for path in RUNS[name].glob(config["checkpoints"]["include"])}
    assert files - included == {config["probe"]["data"]}
    assert [row["file"] for row in facts(name)["checkpoints"]] == sorted(included)
    assert len(probe(name)[0]) == facts(name)["probe"]["samples"]
    assert (RUNS[name] / "README.md").read_text(encoding="utf-8").splitlines()[0].endswith(".")
    assert f"[`{name}`]({name}/README.md) " in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_load_and_give_the_stated_loss(name):
    for row in facts(name)["checkpoints"]:
        model = network(name, row["file"])
        assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
        with torch.no_grad():
            assert float(probe_loss(name, model)) == pytest.approx(row["loss"], rel=1e-4, abs=1e-6)
        with safe_open(RUNS[name] / row["file"], "pt") as opened:
            metadata = opened.metadata()
        for key in ("epoch", "step"):
            assert metadata.get(key) == (str(row[key]) if key in row else None)


@pytest.mark.parametrize("name", RELU_RUNS)
def test_dead_units_are_those_counted(name):
    stated, x = facts(name), probe(name)[0]
    counted = [count_dead(network(name, row["file"]), x) for row in stated["checkpoints"]]
    assert counted == [row["dead"] for row in stated["checkpoints"]]
    for layer, units in stated["units"].items():
        whole = [dead[layer] == units for dead in counted]
        since = next((i for i in range(len(whole)) if all(whole[i:])), None)
        epoch = None if since is None else stated["checkpoints"][since]["epoch"]
        assert stated["dead_since"][layer] == epoch


@pytest.mark.parametrize("name", RELU_RUNS)
def test_accuracy_is_as_stated(name):
    x, y = probe(name)
    for row in facts(name)["checkpoints"]:
        with torch.no_grad():
            right = (network(name, row["file"])(x).argmax(1) == y).float().mean()
        assert float(right) == pytest.approx(row["accuracy"], abs=1.5 / len(x))


@pytest.mark.parametrize("name", ["healthy_mlp", "small_cnn_bn"])
def test_healthy_runs_are_healthy(name):
    stated = facts(name)
    last = stated["checkpoints"][-1]
    assert last["accuracy"] > 0.95
    assert all(last["dead"][layer] <= 0.05 * units for layer, units in stated["units"].items())


def test_one_layer_of_the_dying_run_dies_slowly_and_stays_dead():
    stated = facts("dying_mlp")
    rows, since = stated["checkpoints"], stated["dead_since"]
    assert since == {"0": None, "2": None, "4": 9}
    assert rows[1]["accuracy"] > 0.85
    assert sum(rows[0]["dead"].values()) == 0
    assert len(rows) - since["4"] >= 4
    course = [row["dead"]["4"] for row in rows]
    assert course == sorted(course)
    assert all(abs(row["loss"] - math.log(10)) < 0.01 for row in rows[since["4"] :])


def test_weight_decay_shrinks_whole_layers():
    name = "weight_decay_collapse"
    rows = facts(name)["checkpoints"]
    norms = []
    for row in rows:
        state = network(name, row["file"]).state_dict()
        whole = {k: torch.cat([state[f"{k}.weight"], state[f"{k}.bias"][:, None]], 1) for k in ("0", "2")}
        norms.append({layer: nodes.norm(dim=1) for layer, nodes in whole.items()})
    for row, norm in zip(rows, norms, strict=True):
        for layer, values in norm.items():
            ratio = values / norms[0][layer]
            assert float(ratio.median()) == pytest.approx(row["norm_ratio"][layer], rel=1e-4)
            assert int((ratio < 1e-3).sum()) == row["below_1e-3"][layer]
    assert rows[-1]["below_1e-3"]["0"] == 64
    assert rows[-1]["below_1e-3"]["2"] == 32


@pytest.mark.parametrize("name", ["above_stability", "diverging"])
def test_sharpest_node_has_the_stated_eigenvalue(name):
    for row in facts(name)["checkpoints"]:
        node = row["sharpest_node"]
        model = network(name, row["file"], torch.float64)
        top = float(torch.linalg.eigvalsh(block(name, model, node["layer"], node["index"]))[-1])
        assert top == pytest.approx(node["lambda_max"], rel=1e-5)
        assert node["lambda_max"] <= row["lambda_max"] * (1 + 1e-5)


def test_full_hessian_has_the_stated_eigenvalue():
    for row in facts("above_stability")["checkpoints"][-3:]:
        model = network("above_stability", row["file"], torch.float64)
        top = largest_eigenvalue(probe_loss("above_stability", model), list(model.parameters()))
        assert top == pytest.approx(row["lambda_max"], rel=1e-4)


def test_stability_runs_stand_where_they_should():
    edge, beyond = facts("above_stability"), facts("diverging")
    for stated, name in ((edge, "above_stability"), (beyond, "diverging")):
        assert stated["threshold"] == pytest.approx(2 / settings(name)["optimizer"]["lr"], rel=1e-5)
    for row in edge["checkpoints"][2:]:
        assert row["lambda_max"] == pytest.approx(edge["threshold"], rel=0.05)
    assert edge["steps_with_rising_loss"] > 50
    norms = [row["parameter_norm"] for row in beyond["checkpoints"]]
    assert norms == sorted(norms)
    assert norms[-1] > 100 * norms[0]
    assert all(cosine < 0 for cosine in beyond["output_weight_cosines"][-6:])
    assert beyond["checkpoints"][-1]["sharpest_node"]["lambda_max"] > 3 * beyond["threshold"]


@pytest.mark.parametrize("name", XOR_RUNS)
def test_xor_points_are_stationary_with_the_stated_hessian(name):
    for row in facts(name)["checkpoints"]:
        model = network(name, row["file"], torch.float64)
        (gradient,) = torch.autograd.grad(probe_loss(name, model), [model[0].weight])
        assert float(gradient.norm()) == row["gradient_norm"] == 0
        spectrum = torch.linalg.eigvalsh(block(name, model, "0", 0))
        assert spectrum.tolist() == pytest.approx(row["eigenvalues_mean"], abs=1e-9)


def test_xor_points_have_the_losses_and_hessians_of_the_theory():
    separator, *minima = facts("xor_abs1")["checkpoints"]
    assert (separator["loss_sum"], separator["eigenvalues_sum"]) == (0, [8, 8, 8])
    assert facts("xor_abs1")["separator_eigenvalues_sum_with_flat_kink"] == [0, 4, 8]
    assert [(row["loss_sum"], row["eigenvalues_sum"]) for row in minima] == [(1, [8, 8, 8])] * 2
    assert sum(facts("xor_abs1")["ends_of_300_starts"].values()) == 300
    collapse, spurious = facts("xor_relu1")["checkpoints"]
    assert (collapse["loss_sum"], collapse["eigenvalues_sum"]) == (2, [0, 0, 0])
    assert (spurious["loss_sum"], spurious["eigenvalues_sum"]) == (1, [0, 0, 6])


def test_two_cycle_is_gradient_descent_and_settles():
    rows, rate = facts("two_cycle")["checkpoints"], settings("two_cycle")["optimizer"]["lr"]
    weights = []
    for row in rows:
        model = network("two_cycle", row["file"])
        (gradient,) = torch.autograd.grad(probe_loss("two_cycle", model), [model[0].weight])
        weights.append((float(model[0].weight.detach()), float(gradient)))
    for (before, gradient), (after, _) in pairwise(weights):
        assert after == pytest.approx(before - rate * gradient, rel=1e-4)
    limit = rate / (1 - rate)
    assert sorted(weight for weight, _ in weights[-2:]) == pytest.approx([-limit, limit], rel=2e-3)
