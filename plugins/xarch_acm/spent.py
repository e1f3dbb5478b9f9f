"""How much of its learners a model ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from xarch_acm.gate import Gate

EXECUTED = "executed"
"""Figure: multiply-adds that learners and gates took, as a share of those of all learners."""
DEVIATION = "deviation"
"""Figure: standard deviation, over positions, of the share of a module's learners that runs; the mean of all modules.
If gates collapse to one choice, it is 0."""

SPREAD = "spread"
"""Figure: standard deviation, over samples, of the share of all learners' multiply-adds that a sample takes."""


class Counted(Protocol):
    """What is known of an adaptive module."""

    learners: int
    least: int
    gate: Gate

    @property
    def cost(self) -> float:
        """Multiply-adds of a learner at a position."""

    @property
    def gate_cost(self) -> float:
        """Multiply-adds of the gate at a position."""


class Spent:
    """Counts learners that ran.

    Args:
        modules: path -> adaptive module.
    """

    def __init__(self, modules: Mapping[str, Counted]) -> None:
        self._modules = modules
        self._moments: dict[str, Tensor] = {}
        """path -> positions, sums of their learners and squared learners, and positions whose gate ran."""
        self._samples: dict[str, list[Tensor]] = {}
        """path -> learners of every sample [B] of each batch, the sum of its positions."""

    def add(self, path: str, choice: Tensor, *, gated: bool) -> None:
        """Count choices [B, ..., K] of a module, one-hot, and its gate if that made them."""
        if choice.is_meta:
            return
        each_BK = choice.detach().reshape(choice.shape[0], -1, choice.shape[-1]).sum(1).double()
        each_K = each_BK.sum(0)
        count_K = torch.arange(len(each_K), device=each_K.device, dtype=each_K.dtype) + self._modules[path].least
        positions = each_K.sum()
        self._samples.setdefault(path, []).append(each_BK @ count_K)
        moments = torch.stack([positions, each_K @ count_K, each_K @ count_K.square(), positions * gated])
        self._moments[path] = self._moments[path] + moments if path in self._moments else moments

    def read(self) -> dict[str, float]:
        """Return :data:`EXECUTED`, :data:`DEVIATION` and :data:`SPREAD` and begin anew; nothing if nothing ran."""
        found = {path: moments.tolist() for path, moments in self._moments.items()}
        samples = {path: torch.cat(parts) for path, parts in self._samples.items()}
        self._moments, self._samples = {}, {}
        ran = sum(
            sums[1] * self._modules[path].cost + sums[3] * self._modules[path].gate_cost for path, sums in found.items()
        )
        whole = sum(sums[0] * self._modules[p].cost * self._modules[p].learners for p, sums in found.items())
        if not whole:
            return {}
        spreads = [
            max(squares / n - (total / n) ** 2, 0.0) ** 0.5 / self._modules[path].learners
            for path, (n, total, squares, _) in found.items()
        ]
        each = torch.stack([ran_B * self._modules[path].cost for path, ran_B in samples.items()]).sum(0)
        between = float(each.std(correction=0)) * len(each) / whole
        return {EXECUTED: ran / whole, DEVIATION: sum(spreads) / len(spreads), SPREAD: between}
