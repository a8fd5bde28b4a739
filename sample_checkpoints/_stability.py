"""Full-batch gradient descent at and beyond the edge of stability, with dense Hessians."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from _count import score, sharpness
from _digits import digits
from _run import Checkpoint, Run, Spec, at_epoch, build, flat, replay, rounded
from torch import Tensor, nn

SPEC: Spec = [["Linear", 64, 8], ["Tanh"], ["Linear", 8, 1]]
NETWORK = "MLP 64-8-1, tanh"
SOURCE = "the 400 training digits, target +1 for odd and -1 for even"
SAMPLES = 400


def odd_or_even() -> dict[str, Tensor]:
    """Digits in [0, 1] and whether they are odd."""
    data = digits(centred=False)
    return {"x": data.train_x[:SAMPLES].clone(), "y": (data.train_y[:SAMPLES, None] % 2 * 2 - 1).float()}


def descend(
    probe: dict[str, Tensor], lr: float, *, steps: int, every: int
) -> tuple[list[Checkpoint], list[float]]:
    """Plain gradient descent on the whole set; an epoch is one step. Also the loss before every step."""
    torch.manual_seed(0)
    network = build(SPEC)
    stepper = torch.optim.SGD(network.parameters(), lr=lr)
    kept, losses = [], []
    for step in range(steps + 1):
        if step % every == 0:
            kept.append(at_epoch(network, step, step, digits=3))
        stepper.zero_grad()
        loss = nn.functional.mse_loss(network(probe["x"]), probe["y"])
        losses.append(loss.item())
        loss.backward()
        stepper.step()
    return kept, losses


def stability_facts(probe: dict[str, Tensor], lr: float, *, steps: int, every: int) -> dict[str, Any]:
    """Train and measure: the keywords of Run that both runs share."""
    checkpoints, losses = descend(probe, lr, steps=steps, every=every)
    rows = []
    for checkpoint, network in replay(SPEC, checkpoints):
        row: dict[str, Any] = {"file": checkpoint.file + ".safetensors", **checkpoint.place}
        row |= score(network, probe, "mse")
        row["parameter_norm"] = rounded(float(flat(network).norm()))
        row |= sharpness(network, probe, "mse")
        rows.append(row)
    rises = sum(after > before for before, after in pairwise(losses))
    facts = {"threshold": rounded(2 / lr), "steps_with_rising_loss": rises, "checkpoints": rows}
    return {
        "spec": SPEC,
        "network": NETWORK,
        "probe": probe,
        "probe_source": SOURCE,
        "loss": "mse",
        "include": "epoch_*.safetensors",
        "checkpoints": checkpoints,
        "facts": facts,
        "optimizer": {"name": "sgd", "lr": lr},
    }


def above_stability() -> Run:
    """Sharpness rises to 2/α and stays there."""
    shared = stability_facts(odd_or_even(), 0.15, steps=600, every=50)
    rows = shared["facts"]["checkpoints"][2:]
    tops = [row["lambda_max"] for row in rows]
    nodes = [row["sharpest_node"]["lambda_max"] for row in rows]
    return Run(
        name="above_stability",
        verdict="Trained at the edge of stability: from step 100 on the largest Hessian eigenvalue lies "
        f"between {min(tops):.2f} and {max(tops):.2f} where 2/lr = {shared['facts']['threshold']:.2f}; "
        "known from the dense float64 Hessian of each checkpoint.",
        story="Full-batch gradient descent, learning rate 0.15, a checkpoint every 50 of 600 steps. The "
        f"loss rises in {shared['facts']['steps_with_rising_loss']} of the steps and falls all the same. "
        "No single node is above the threshold: the sharpest block of one node lies between "
        f"{min(nodes):.2f} and {max(nodes):.2f}, since a principal block of a matrix has no larger "
        "eigenvalue than the whole.",
        **shared,
    )


def diverging() -> Run:
    """The same start with a learning rate that no part of the network bears."""
    shared = stability_facts(odd_or_even(), 0.4, steps=10, every=1)
    rows, threshold = shared["facts"]["checkpoints"], shared["facts"]["threshold"]
    outputs = [checkpoint.state["2.weight"][0] for checkpoint in shared["checkpoints"]]
    turns = [rounded(float(torch.cosine_similarity(a, b, dim=0))) for a, b in pairwise(outputs)]
    shared["facts"]["output_weight_cosines"] = turns
    return Run(
        name="diverging",
        verdict=f"Diverging in oscillation: the parameter norm grows from {rows[0]['parameter_norm']:.2f} "
        f"to {rows[-1]['parameter_norm']:.0f} in 10 steps while the output weights turn back at each step "
        f"from the fifth on (cosine {turns[-1]:.2f} in the last); known from the iterates and from the "
        f"Hessian block of the output node, whose eigenvalue {rows[-1]['sharpest_node']['lambda_max']:.1f} "
        f"is far above 2/lr = {threshold:.0f}.",
        story="The network, start and data of `above_stability` with learning rate 0.4, one checkpoint a "
        "step. Once the tanh units are saturated the output node is a linear regression on nine constant "
        "signs: its largest eigenvalue is 2·9 = 18, and each step multiplies its error by about 1 - "
        "0.4·18 = -6.2.",
        **shared,
    )
