"""Losses of single samples over several processes: each gives its own, all get the whole batch's."""

from __future__ import annotations

import pytest
import torch

from xarch import Batch
from xarch.engine.distributed import Distributed


class Third(Distributed):
    """One of three processes, without the others."""

    def __init__(self, rank: int) -> None:
        super().__init__(cpu=True)
        self.rank, self.world = rank, 3


@pytest.mark.parametrize("samples", [3, 7, 8])
def test_shares_join_to_the_whole(samples: int) -> None:
    losses = torch.arange(1.0, samples + 1)
    batch = Batch({"loss": losses}, samples)
    parts = [Third(rank).joined(Third(rank).slice(batch)["loss"], samples) for rank in range(3)]
    assert torch.equal(torch.stack(parts).sum(dim=0), losses)
