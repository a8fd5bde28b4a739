"""The tables of ``nndiag.toml`` and of ``[tool.nndiag]``: what may be written and of which type.

A key that is not given is ``None`` (or an empty mapping): defaults are chosen where they are used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(strict=True, min_length=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]


class Table(BaseModel):
    """A frozen table that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelTable(Table):
    """``[model]``: the network, as a list of layers or as a factory with its keywords."""

    sequential: tuple[tuple[Any, ...], ...] | None = None
    factory: Text | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> ModelTable:
        if self.sequential is not None and self.factory is not None:
            raise ValueError("sequential and factory exclude each other")
        if self.kwargs and self.factory is None:
            raise ValueError("kwargs are the keywords of a factory, and there is no factory")
        return self


class CheckpointsTable(Table):
    """``[checkpoints]``: which files of the directory are checkpoints, as a glob, and where the weights lie in them."""

    include: Text | None = None
    weights_key: Text | None = None
    strip_prefix: Text | None = None


class ProbeTable(Table):
    """``[probe]``: the data to measure on, and the loss."""

    data: Text | None = None
    loss: Text | None = None
    limit: Positive | None = None
    batch_size: Positive | None = None
    block_size: Positive | None = None


class OptimizerTable(Table):
    """``[optimizer]``: the update rule, where the checkpoint does not say it or says it wrongly."""

    name: Literal["sgd", "adam", "adamw"] | None = None
    lr: Amount | None = None
    momentum: Decay | None = None
    betas: tuple[Decay, Decay] | None = None
    weight_decay: Amount | None = None
    horizon: Annotated[Number, Field(gt=0)] | None = None


class LayerLimits(Table):
    """``[policy.layers."PATTERN"]``: other limits for the layers whose names match."""

    max_degenerate_fraction: Fraction | None = None
    max_dead_fraction: Fraction | None = None
    max_new_degenerate: Count | None = None
    min_effective_rank: Amount | None = None
    forbid: tuple[Text, ...] | None = None


class PolicyTable(LayerLimits):
    """``[policy]``: what makes the gate fail; ``config.policy`` says what the keys mean."""

    max_regression: Amount | None = None
    layers: dict[str, LayerLimits] = Field(default_factory=dict)


class ActionsTable(Table):
    """``[actions]``: whether the network trains on (``"train"``) or is finished (``"deploy"``), and how nodes that
    start anew are drawn.
    """

    goal: Literal["train", "deploy"] | None = None
    init: Text | None = None


class RulesTable(Table):
    """``[rules]``: which findings are looked for, and thresholds by name."""

    select: tuple[Text, ...] | None = None
    ignore: tuple[Text, ...] | None = None
    thresholds: dict[str, Number] = Field(default_factory=dict)


class Tables(Table):
    """Everything that may be written."""

    model: ModelTable = ModelTable()
    checkpoints: CheckpointsTable = CheckpointsTable()
    probe: ProbeTable = ProbeTable()
    optimizer: OptimizerTable = OptimizerTable()
    policy: PolicyTable = PolicyTable()
    actions: ActionsTable = ActionsTable()
    rules: RulesTable = RulesTable()
