"""One of two processes: a few steps of Muon over sharded weights must equal those over whole ones."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard

from xarch.optim import Muon


def main() -> None:
    init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 33, bias=False), nn.Tanh(), nn.Linear(33, 16, bias=False))
    whole = copy.deepcopy(model)
    fully_shard(model)
    optimisers = [Muon(m.parameters(), lr=0.1, weight_decay=0.1) for m in (model, whole)]
    for step in range(3):
        x_BD = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
        for network, optimiser in zip((model, whole), optimisers, strict=True):
            optimiser.zero_grad()
            network(x_BD).square().mean().backward()
            optimiser.step()
    for sharded, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(sharded.full_tensor(), expected, rtol=1e-4, atol=1e-5)
    destroy_process_group()


if __name__ == "__main__":
    main()
