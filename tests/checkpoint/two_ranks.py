"""Run by torchrun on two ranks: shards a small network, trains it and writes it with torch.distributed.checkpoint."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Holds:
    """Something stateful, as torchtitan hands it over."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def main(out: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.99))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(5, 4)).square().mean().backward()
        optimizer.step()
    weights, nested = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": nested, "step": 3, "epoch": 1}, checkpoint_id=f"{out}/nested")
    flat = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True)
    )
    train = Holds({"step": torch.tensor(3), "ntokens_seen": torch.tensor(960)})
    dcp.save(
        {**get_model_state_dict(model), "optimizer": Holds(flat), "train_state": train},
        checkpoint_id=f"{out}/flat",
    )
    options = StateDictOptions(full_state_dict=True)
    whole = get_state_dict(model, optimizer, options=options)
    if dist.get_rank() == 0:
        torch.save({"model": whole[0], "optim": whole[1]}, f"{out}/whole.pt")
    dist.barrier()  # no rank leaves while the other still talks to it
    os._exit(
        0
    )  # all is written; the threads of gloo are now and then not joined in time, which ends in SIGABRT


if __name__ == "__main__":
    main(sys.argv[1])
