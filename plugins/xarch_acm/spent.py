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

    def add(self, path: str, choice: Tensor, *, gated: bool) -> None:
        """Count choices [..., K] of a module, one-hot, and its gate if that made them."""
        if choice.is_meta:
            return
        each_K = choice.detach().flatten(0, -2).sum(0).double()
        count_K = torch.arange(len(each_K), device=each_K.device, dtype=each_K.dtype) + self._modules[path].least
        positions = each_K.sum()
        moments = torch.stack([positions, each_K @ count_K, each_K @ count_K.square(), positions * gated])
        self._moments[path] = self._moments[path] + moments if path in self._moments else moments

    def read(self) -> dict[str, float]:
        """Return :data:`EXECUTED` and :data:`DEVIATION` and begin anew; nothing if nothing ran."""
        found = {path: moments.tolist() for path, moments in self._moments.items()}
        self._moments = {}
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
        return {EXECUTED: ran / whole, DEVIATION: sum(spreads) / len(spreads)}
