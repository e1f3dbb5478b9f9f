"""A rival: hidden units that are alike become experts, and a router runs the ones that it expects to be most active
(Zhang et al., *MoEfication*, arXiv:2110.01786). The same number of experts runs at every position.

Legend: ... samples and positions, D width of the input, F hidden units, N experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch_acm.module import AdaptiveModule
from xarch_acm.sort import Sorter, rearrange

ROUNDS = 10


class ExpertModule(AdaptiveModule):
    """Runs the ``point.fixed`` learners with the largest outputs of the gate, here a router [..., N], instead of the
    first ones."""

    @property
    def gated(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        running = self.point.fixed
        assert running is not None, "experts run in a fixed number"
        best = self.gate(x).topk(running, -1).indices
        kept = torch.zeros(*best.shape[:-1], self.learners, device=x.device, dtype=x.dtype).scatter(-1, best, 1.0)
        if self.watch is not None:
            choice = torch.zeros_like(kept)
            choice[..., running - self.least] = 1.0
            self.watch(choice, choice)
        return self.out(self.hidden(x) * kept.index_select(-1, self.owner_F))

    def activity(self, x: Tensor) -> Tensor:
        """Return how active every expert is [..., N], beside the most active one."""
        sums = x.new_zeros(*x.shape[:-1], self.learners).index_add(-1, self.owner_F, self.hidden(x).abs())
        return sums / sums.amax(-1, keepdim=True).clamp_min(1e-12)


class Grouper(Sorter):
    """Sorts the hidden units of a module by expert: balanced k-means on their normalised input weights."""

    @torch.no_grad()
    def solve(self) -> dict[str, float]:
        """Sort; return the mean cosine of the units with the centre of their expert."""
        module = self.module
        rows_FD = torch.cat([layer.weight for layer in module.layers], 1).double()
        rows_FD = rows_FD / rows_FD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        sizes = [end - begin for begin, end in zip(module.edges, module.edges[1:], strict=False)]
        owner_F = module.owner_F.clone()
        for _ in range(ROUNDS):
            centres_ND = torch.zeros(len(sizes), rows_FD.shape[1], dtype=rows_FD.dtype).index_add(0, owner_F, rows_FD)
            close_FN = rows_FD @ (centres_ND / centres_ND.norm(dim=1, keepdim=True).clamp_min(1e-12)).T
            owner_F = _assigned(close_FN, sizes)
        rearrange(module, owner_F.argsort(stable=True))
        return {"cosine": float(close_FN.gather(1, owner_F[:, None]).mean())}


def _assigned(close_FN: Tensor, sizes: list[int]) -> Tensor:
    """Return unit -> expert [F], every expert as large as it is to be: the closest pairs first."""
    owner_F, room = torch.full((close_FN.shape[0],), -1), list(sizes)
    for pair in close_FN.flatten().argsort(descending=True).tolist():
        unit, expert = divmod(pair, close_FN.shape[1])
        if owner_F[unit] < 0 and room[expert]:
            owner_F[unit], room[expert] = expert, room[expert] - 1
    return owner_F
