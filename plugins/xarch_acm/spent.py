"""How much of its learners a model ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

EXECUTED = "executed"
"""Figure: share of the multiply-adds of all learners that ran."""


class Counted(Protocol):
    """What is known of an adaptive module."""

    learners: int
    least: int

    @property
    def cost(self) -> float:
        """Multiply-adds of a learner at a position."""


class Spent:
    """Counts learners that ran.

    Args:
        modules: path -> adaptive module.
    """

    def __init__(self, modules: Mapping[str, Counted]) -> None:
        self._modules = modules
        self._ran: dict[str, Tensor] = {}
        self._positions: dict[str, int] = {}

    def add(self, path: str, choice: Tensor) -> None:
        """Count choices [..., K] of a module, one-hot."""
        if choice.is_meta:
            return
        each_K = choice.detach().flatten(0, -2).sum(0).double()
        count = torch.arange(len(each_K), device=each_K.device, dtype=each_K.dtype) + self._modules[path].least
        ran = each_K @ count
        self._ran[path] = self._ran[path] + ran if path in self._ran else ran
        self._positions[path] = self._positions.get(path, 0) + choice[..., 0].numel()

    def read(self) -> dict[str, float]:
        """Return :data:`EXECUTED` and begin anew; nothing if nothing ran."""
        ran = sum(float(n) * self._modules[path].cost for path, n in self._ran.items())
        whole = sum(n * self._modules[p].cost * self._modules[p].learners for p, n in self._positions.items())
        self._ran, self._positions = {}, {}
        return {EXECUTED: ran / whole} if whole else {}
