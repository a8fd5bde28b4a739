"""Reports made by hand: every state that a report can be in, without measuring anything."""

from __future__ import annotations

import math

from nndiag.records.report import Report, Unmeasured
from tests.report.builder import dead, diagnosis, finding, layer, node, report

HOSTILE = (
    "[red]x[/]",
    "\x1b[31mred",
    "a\nb",
    "[/bold]|`<b>@me",
    "\u202eevil",
    "::error::x",
    "日本語の層" * 8,
)


def dying(epochs: int = 8) -> Report:
    """Layer 2 dies: more than half of it from epoch 3 on, all from epoch 5 on; layer 0 loses a few nodes."""
    deaths = [0, 6, 40, 57] + [64] * (epochs - 4)
    losses = [1.93, 1.12, 2.2, 2.29] + [2.303] * (epochs - 4)
    made = []
    for place in range(epochs):
        count, few = deaths[place], min(place, 5)
        whole = finding(
            "ND252",
            "layer-degenerate",
            f"{count} of 64 nodes are dead, collapsed or on a plateau",
            "error",
            cause="ND201",
            degenerate_fraction=count / 64,
        )
        data = finding(
            "ND250", "dead-data", "81 % of the samples reach no node of this layer", dead_data_fraction=0.81
        )
        layers = [
            layer(
                "0",
                64,
                plateau=few,
                measures={"dead_data_fraction": 0.0, "effective_rank": 31.2, "torque_ratio_p10": 0.62},
            ),
            layer(
                "2",
                64,
                fan_in=64,
                plateau=count,
                findings=([whole, data] if count > 32 else []),
                measures={
                    "dead_data_fraction": count / 64,
                    "effective_rank": max(1.0, 24.6 - count / 2.7),
                    "torque_ratio_p10": 0.0 if count > 32 else 0.41,
                },
            ),
            layer("4", 10, fan_in=64, measures={"torque_ratio_p10": 0.85, "effective_rank": 7.81}),
        ]
        nodes = [node("0", 7 * i, findings=dead(1000)) for i in range(few)]
        nodes += [node("2", (i * 37) % 64, findings=dead(1000)) for i in range(count)]
        made.append(
            diagnosis(
                layers,
                sorted(nodes, key=lambda n: (n.layer, n.index)),
                loss=losses[place],
                path=f"runs/dying/epoch_{place + 1:03}.safetensors",
                epoch=place + 1,
                optimizer={"name": "sgd", "lr": 0.5},
            )
        )
    return report(*made)


def healthy() -> Report:
    measures = {"dead_data_fraction": 0.0, "effective_rank": 31.2, "torque_ratio_p10": 0.62}
    layers = [
        layer("0", 64, measures=measures),
        layer("2", 64, measures=measures),
        layer("4", 10, measures=measures),
    ]
    return report(diagnosis(layers, optimizer={"name": "adam", "lr": 1e-3}, epoch=12, step=4000))


def cnn() -> Report:
    """Twenty layers, convolutions and norms in turn, with small troubles of several kinds."""
    layers, nodes = [layer("stem.conv", 16, "Conv2d", 27)], []
    for block in range(9):
        width = 16 * 2 ** (block // 3)
        layers.append(
            layer(
                f"layer{block // 3 + 1}.{block % 3}.conv1",
                width,
                "Conv2d",
                9 * width,
                plateau=12 if block == 4 else 0,
                collapsed=3 if block == 4 else 0,
                source=1 if block == 4 else 0,
                measures={
                    "dead_data_fraction": 0.013,
                    "effective_rank": width / 2.3,
                    "lambda_max_median": 3.2e-5,
                },
            )
        )
        layers.append(
            layer(
                f"layer{block // 3 + 1}.{block % 3}.bn1",
                width,
                "BatchNorm2d",
                1,
                saddle=2 if block == 7 else 0,
                measures={"effective_rank": None},
            )
        )
    layers.append(layer("fc", 10, fan_in=64, measures={"torque_ratio_p10": 0.4}))
    bad = "layer2.1.conv1"
    nodes += [
        node(bad, i, findings=dead(4000), kind="prune", reason="dead on all 4,000 samples") for i in range(12)
    ]
    small = finding("ND102", "zero-collapse", "its weights are 1e-7 of the layer's median", weight_norm=1e-7)
    nodes += [node(bad, i, "collapsed", [small], "prune", "its weights are zero") for i in (20, 21, 30)]
    source = finding(
        "ND402", "source", "λmax 5,120 is above the stability threshold 4,000", "error", lambda_max=5120.0
    )
    nodes.append(node(bad, 31, "source", [source], "lower_lr", "stable up to 3.9e-4"))
    negative = finding("ND403", "negative-curvature", "λmin −0.2 is significant", lambda_min=-0.2)
    nodes += [node("layer3.1.bn1", i, "saddle", [negative], "none", "") for i in (5, 60)]
    twin = finding("ND206", "duplicate-output", "repeats node 3", "warning")
    nodes.append(node("layer1.0.conv1", 9, "healthy", [twin], "merge", "repeats node 3"))
    busy = finding("ND205", "always-on", "fires on every sample", "info")
    nodes += [node("layer3.2.conv1", i, "healthy", [busy], "none", "") for i in range(5)]
    return report(
        diagnosis(
            layers,
            nodes,
            optimizer={"name": "adamw", "lr": 5e-4},
            step=12345,
            samples=4000,
            unmeasured=[Unmeasured(name="pos_embed", reason="used as a raw parameter")],
        )
    )


def unknown() -> Report:
    layers = [layer("0", 512, unknown=512, fan_in=784), layer("2", 10, unknown=10, fan_in=512)]
    return report(diagnosis(layers, samples=None, level="weights", path="model.safetensors"))


def not_finite() -> Report:
    broken = finding("ND101", "non-finite", "3 of its 65 numbers are NaN or infinite", "error", non_finite=3)
    layers = [
        layer("0", 64),
        layer("2", 64, unknown=3, measures={"weight_norm_median": None, "effective_rank": None}),
    ]
    nodes = [node("2", i, "unknown", [broken], reason="its weights are not finite") for i in (3, 4, 60)]
    return report(diagnosis(layers, nodes, loss=math.nan))


def deep(count: int = 200) -> Report:
    """Many layers, few of them with findings."""
    layers = [layer(f"blocks.{i}.mlp.fc1", 256, plateau=30 if i % 61 == 7 else 0) for i in range(count)]
    nodes = [node(one.name, i, findings=dead(1000)) for one in layers for i in range(one.verdicts["plateau"])]
    return report(diagnosis(layers, nodes))


def hostile() -> Report:
    layers = [layer(name, 4, kind=name, plateau=4) for name in HOSTILE]
    nodes = [
        node(
            name,
            i,
            findings=[
                finding("ND201", name, f"message {name}"),
                finding("ND999", "new", name, cause="ND201"),
            ],
            reason=f"because {name}",
        )
        for name in HOSTILE
        for i in range(4)
    ]
    odd = [Unmeasured(name=name, reason=name) for name in HOSTILE]
    first = diagnosis(
        layers,
        nodes,
        path="runs/" + HOSTILE[0] + HOSTILE[1] + HOSTILE[2],
        unmeasured=odd,
        optimizer={"name": HOSTILE[1], "lr": 0.1},
    )
    return report(first, first)


def single_node() -> Report:
    layers = [layer("hidden", 1, fan_in=2, plateau=1), layer("out", 1, fan_in=1)]
    return report(diagnosis(layers, [node("hidden", 0, findings=dead(4))], samples=4))


def long_run(count: int = 120) -> Report:
    """More checkpoints than there are columns."""
    made = []
    for epoch in range(count):
        bad = min(8, epoch // 12)
        nodes = [node("0", i, findings=dead(10)) for i in range(bad)]
        layers = [layer("0", 8, plateau=bad)]
        made.append(diagnosis(layers, nodes, epoch=epoch, loss=1.0 / (epoch + 1), path=f"e{epoch}.pt"))
    return report(*made)


def recovering() -> Report:
    return report(
        *(
            diagnosis(
                [layer("0", 8, plateau=n)],
                [node("0", j, findings=dead(10)) for j in range(n)],
                step=100 * i,
                path=f"s{i}.pt",
            )
            for i, n in enumerate((0, 6, 7, 1))
        )
    )


ALL = {
    "dying": dying,
    "healthy": healthy,
    "cnn": cnn,
    "unknown": unknown,
    "not_finite": not_finite,
    "deep": deep,
    "hostile": hostile,
    "single_node": single_node,
    "long_run": long_run,
    "recovering": recovering,
}
