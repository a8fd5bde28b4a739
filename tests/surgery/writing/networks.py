"""A small network with normalisation, its optimiser, and what may be done to them; independent of the writers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nndiag.checkpoint import Permission, open_checkpoint
from nndiag.checkpoint.permission import NOTHING
from nndiag.model.fit import fit
from nndiag.surgery.edits import Edits
from nndiag.surgery.writing import Written, write

WIDTH = 6
LIVING = torch.tensor([0, 2, 3, 5])
HEALED = torch.tensor([1, 4])

Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


def network(width: int = WIDTH) -> nn.Sequential:
    """Two layers with a normalisation between."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam as it is mostly used."""
    return torch.optim.Adam(model.parameters(), lr=0.01)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 1) -> None:
    """One step of training."""
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(16, 4, generator=generator)).square().mean().backward()
    optimizer.step()


def trained(make: Optimizer = adam, steps: int = 3) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """The network after some steps."""
    model = network()
    optimizer = make(model)
    for seed in range(steps):
        step(model, optimizer, seed)
    return model, optimizer


def healed(model: nn.Module) -> Edits:
    """New incoming weights for two nodes, none outgoing, and a fresh start for all of them: no shape changes."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    reset = {}
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        values[name][HEALED] = 0.5
        reset[name] = torch.zeros(values[name].shape, dtype=torch.bool)
        reset[name][HEALED] = True
    values["1.running_mean"][HEALED] = 0.25
    values["3.weight"][:, HEALED] = 0.0
    reset["3.weight"] = torch.zeros(values["3.weight"].shape, dtype=torch.bool)
    reset["3.weight"][:, HEALED] = True
    unchanged = ("3.bias", "1.running_var", "1.num_batches_tracked")
    return Edits({name: value for name, value in values.items() if name not in unchanged}, reset=reset)


def pruned(model: nn.Module) -> Edits:
    """Two nodes fewer."""
    values = model.state_dict()
    rows = {
        name: values[name][LIVING].clone()
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    }
    kept: dict[str, tuple[Tensor | None, ...]] = {
        name: (LIVING,) if value.dim() == 1 else (LIVING, None) for name, value in rows.items()
    }
    return Edits(
        {**rows, "3.weight": values["3.weight"][:, LIVING].clone()}, {**kept, "3.weight": (None, LIVING)}
    )


def expected(model: nn.Module, edits: Edits) -> Mapping[str, Tensor]:
    """The state dict that the edits lead to."""
    return {**model.state_dict(), **edits.values}


def written(
    source: Path, edits: Edits, destination: Path, model: nn.Module, permission: Permission = NOTHING
) -> Written:
    """Open a checkpoint, fit it to the model, and write it with edits."""
    found = open_checkpoint(source, permission)
    return write(found, fit(model, found.places), edits, destination, model=model, permission=permission)


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts agree in order, types and values."""
    return list(found) == list(wanted) and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in wanted.items()
    )
