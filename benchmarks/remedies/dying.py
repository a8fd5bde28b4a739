"""(a) Networks that died in three ways, trained on by four: nothing, healed, ReDo, and from scratch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import nndiag
from benchmarks.remedies import redo
from benchmarks.remedies.training import (
    LR,
    accuracy,
    dormant_share,
    loss_on,
    network,
    test_data,
    train,
    train_data,
)
from nndiag.monitor.healing import HealingSettings, forget
from nndiag.pipeline.in_memory import diagnose_model, probe_of
from nndiag.remedies.plan import ADVICE, plan
from nndiag.surgery.training.treating import treat
from nndiag.surgery.training.trial import Limit
from nndiag.surgery.training.ward import Ward

STEPS = 300
"""Of training on."""
SEEDS = 10
"""As many networks die in each way: digits are easy, so that accuracies end close to each other."""
ROUNDS = 3
INITIALISER = "kaiming_normal"
"""What the networks started from, as it is for ReDo."""


@dataclass(frozen=True)
class End:
    """Where one network ended: on unseen samples, on those trained on, and the share of dormant units."""

    accuracy: float
    loss: float
    dormant: float


def by_large_rate(seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Kill units by a hundred steps at forty times the learning rate."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=40 * LR)
    train(model, optimizer, train_data(), 100, seed)
    return model, optimizer


def by_bias(seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Start with biases so low that hardly a unit fires, and train for two hundred steps."""
    model = network(seed)
    with torch.no_grad():
        for module in model[:-1]:
            if isinstance(module, nn.Linear):
                module.bias.fill_(-3.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    train(model, optimizer, train_data(), 200, seed)
    return model, optimizer


def by_decay(seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Train with a weight decay that shrinks the network to nothing."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=0.1)
    train(model, optimizer, train_data(), 600, seed)
    return model, optimizer


WAYS: Mapping[str, Callable[[int], tuple[nn.Sequential, torch.optim.Optimizer]]] = {
    "large learning rate": by_large_rate,
    "bad initial biases": by_bias,
    "weight decay": by_decay,
}


def heal(model: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Heal a model in memory as ``nndiag heal --goal train`` heals a checkpoint."""
    data = train_data()
    ward = Ward(model, probe_of(data, None), seed, INITIALISER)
    limit = Limit(ward.replay(), 0.01)
    for attempt in range(ROUNDS):
        found = diagnose_model(model, data, None, None).checkpoints[0]
        due = [one for one in plan(found, "train") if one.kind not in ADVICE]
        ward.attempt = attempt
        if not due or not treat(ward, due, limit).done:
            break
    forget(model, optimizer, ward.reset)


def nothing(model: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int) -> None:
    train(model, optimizer, train_data(), STEPS, seed + 1000)


def healed(model: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int) -> None:
    heal(model, optimizer, seed)
    train(model, optimizer, train_data(), STEPS, seed + 1000)


def watched(model: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int) -> None:
    with nndiag.Monitor(
        model,
        every=10,
        optimizer=optimizer,
        probe=train_data(),
        heal=HealingSettings(initialiser=INITIALISER),
    ) as monitor:
        train(model, optimizer, train_data(), STEPS, seed + 1000, before_step=monitor.step)


def _redo(tau: float) -> Callable[[nn.Sequential, torch.optim.Optimizer, int], None]:
    def recycled(model: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x = train_data()[0]
        torch.manual_seed(seed)
        redo.recycle(model, optimizer, x, tau)

        def after(step: int) -> None:
            if step % redo.EVERY == 0 and step < STEPS:
                redo.recycle(model, optimizer, x, tau)

        train(model, optimizer, train_data(), STEPS, seed + 1000, after_step=after)

    return recycled


ARMS: Mapping[str, Callable[[nn.Sequential, torch.optim.Optimizer, int], None]] = {
    "nothing": nothing,
    "heal, once": healed,
    "Monitor, every 10": watched,
    "ReDo, every 50, τ = 0.1": _redo(0.1),
    "ReDo, every 50, τ = 0.025": _redo(0.025),
}


def ends(way: str, seed: int) -> dict[str, End]:
    """Return where one dead network ends by every arm, and what it was before."""
    dead, state = WAYS[way](seed)
    for group in state.param_groups:  # what killed it is over
        group["lr"], group["weight_decay"] = LR, 0.0
    found = {"before": _end(dead)}
    for name, arm in ARMS.items():
        model = copy.deepcopy(dead)
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        optimizer.load_state_dict(copy.deepcopy(state.state_dict()))  # it would be shared
        arm(model, optimizer, seed)
        found[name] = _end(model)
    model = network(seed + 500)
    train(model, torch.optim.Adam(model.parameters(), lr=LR), train_data(), STEPS, seed + 1000)
    found["from scratch"] = _end(model)
    return found


def _end(model: nn.Sequential) -> End:
    x: Tensor = train_data()[0]
    return End(accuracy(model, test_data()), loss_on(model, train_data()), dormant_share(model, x))
