"""Units replaced in a tile of variants do what they do one at a time, replaced by a hook."""

from __future__ import annotations

import pytest
import torch
from tests.cases import cnn, mlp
from torch import Tensor, nn

from nndiag.measures.trying import Replacement, try_replacements
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe


class Residual(nn.Module):
    """Units that are added to what they were made of, and an activation that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h + torch.relu(self.block(h)))


class Branching(nn.Module):
    """Code that looks at numbers, which no batch of variants goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.act, self.last = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.inside(x))
        return self.last(h if float(h.sum()) > 0 else -h)


class Twice(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.act, self.last = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.inside(self.act(self.inside(x)))))


def probe(model: nn.Module, shape: tuple[int, ...], samples: int = 40, batch_size: int = 16) -> Probe:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (samples,), generator=generator)
    return Probe((x,), y, named_loss("cross_entropy"), batch_size)


def oracle(
    model: nn.Module, source: nn.Module, given: Probe, units: list[tuple[int, int | None]]
) -> tuple[float, float]:
    """Replace outputs of the module ``source`` by their means over all of its calls, or by least squares from another
    unit's, and run the whole probe.
    """
    seen: list[Tensor] = []
    hook = source.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        full = model(*given.inputs)
    hook.remove()
    values = torch.cat([one.movedim(1, -1).reshape(-1, one.shape[1]) for one in seen])
    fits = {}
    for index, by in units:
        columns = [torch.ones(len(values), dtype=values.dtype)] + ([] if by is None else [values[:, by]])
        a = torch.stack(columns, dim=1)
        fits[index] = (
            by,
            torch.linalg.lstsq(a, values[:, index : index + 1], driver="gelsd").solution.flatten(),
        )

    def change(_m: nn.Module, _i: object, out: Tensor) -> Tensor:
        changed = out.clone()
        for index, (by, solution) in fits.items():
            changed[:, index] = solution[0] + (0 if by is None else solution[1] * out[:, by])
        return changed

    hook = source.register_forward_hook(change)
    with torch.no_grad():
        output = model(*given.inputs)
    hook.remove()
    assert given.targets is not None
    loss = float(nn.functional.cross_entropy(output, given.targets))
    return loss, float((output - full).abs().max() / full.abs().max())


CASES = {
    "mlp": (mlp, (6,), "0", "1", 12),
    "convolution behind a norm": (cnn, (2, 8, 8), "3", "5", 6),
    "no activation of its own": (Residual, (6,), "last", "last", 4),
    "code that looks at numbers": (Branching, (6,), "inside", "act", 8),
    "a layer used twice": (Twice, (6,), "inside", "act", 6),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("entries", [2**24, 1])
def test_every_unit_alone_and_all_together(name: str, entries: int) -> None:
    build, shape, layer, source, units = CASES[name]
    torch.manual_seed(0)
    model = build().double().eval()
    given = probe(model, shape)
    wanted = [
        Replacement(layer, i, by=(i - 1) if i in (2, 5) and name == "mlp" else None) for i in range(units)
    ]
    found = try_replacements(model, given, wanted, entries=entries)
    at = model.get_submodule(source)
    with torch.no_grad():
        assert found.loss == pytest.approx(
            float(nn.functional.cross_entropy(model(*given.inputs), given.targets)), rel=1e-12
        )
    for one, tried in zip(wanted, found.alone, strict=True):
        assert tried is not None
        loss, change = oracle(model, at, given, [(one.index, one.by)])
        assert tried.loss == pytest.approx(loss, rel=1e-9)
        assert tried.output_change == pytest.approx(change, rel=1e-8, abs=1e-12)
    assert found.together is not None
    loss, change = oracle(model, at, given, [(one.index, one.by) for one in wanted])
    assert found.together.loss == pytest.approx(loss, rel=1e-9)
    assert found.together.output_change == pytest.approx(change, rel=1e-8)


def test_it_costs_passes_and_not_units() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 4)).double()
    given = probe(model, (6,), batch_size=40)
    few = try_replacements(model, given, [Replacement("0", i) for i in range(4)])
    many = try_replacements(model, given, [Replacement("0", i) for i in range(200)])
    assert few.passes == many.passes == 3  # as it is, every unit alone, all together


def test_constant_units_change_nothing_and_take_no_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        model[0].bias[:3] = -100.0
        model[0].weight[3] = 0.0
    given = probe(model, (6,), batch_size=40)
    found = try_replacements(model, given, [Replacement("0", i) for i in range(4)])
    assert found.passes == 2
    assert all(one is not None and one.output_change == 0 and one.loss == found.loss for one in found.alone)
    assert found.together is not None
    assert found.together.output_change == 0


def test_layers_that_have_no_units_of_their_own_are_not_tried() -> None:
    torch.manual_seed(0)
    model = cnn().double().eval()
    found = try_replacements(model, probe(model, (2, 8, 8)), [Replacement("1", 0)])
    assert found.alone == (None,)
    assert found.together is None


def test_without_a_loss_the_change_of_the_outputs_is_known() -> None:
    torch.manual_seed(0)
    model = mlp().double()
    given = probe(model, (6,))
    found = try_replacements(model, Probe(given.inputs, None, None, 16), [Replacement("0", 1)])
    assert found.loss is None
    assert found.alone[0] is not None
    assert found.alone[0].loss is None
    assert found.alone[0].output_change > 0


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = mlp().double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try_replacements(model, probe(model, (6,)), [Replacement("0", 1), Replacement("2", 1)])
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_units_of_a_matrix_outside_of_any_layer_are_what_its_product_has() -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.act = nn.Parameter(torch.randn(6, 9)), nn.ReLU()
            self.last = nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(x @ self.matrix))

    torch.manual_seed(0)
    model = Columns().double().eval()
    given = probe(model, (6,))
    found = try_replacements(model, given, [Replacement("matrix", unit) for unit in range(9)])
    for unit, tried in enumerate(found.alone):
        loss, change = oracle(model, model.act, given, [(unit, None)])
        assert tried is not None
        assert tried.output_change == pytest.approx(change, rel=1e-8)
        assert tried.loss == pytest.approx(loss, rel=1e-8)
