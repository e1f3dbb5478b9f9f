"""Closed form of a stage: hidden units in the order of what they contribute.

Legend: T positions, F hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, Solver
from xarch_acm.module import AdaptiveModule


class Sorter(Solver):
    """Sorts the hidden units of a module by E[a²]·‖w‖², w the column of ``out`` that reads the unit, over the
    teacher's inputs; the module computes the same as before with all learners.

    Args:
        module: sorted in place.
        site: its name.
    """

    def __init__(self, module: AdaptiveModule, site: str) -> None:
        self.module, self.site = module, site
        self.inputs = (f"{site}.in", f"{site}.out")
        self._squares_F: Tensor | None = None
        self._count = self._power = self._error = 0.0

    @torch.no_grad()
    def observe(self, values: Mapping[str, Any], batch: Batch) -> None:
        x, wanted = (values[name].to(self.module.out.weight.dtype) for name in self.inputs)
        hidden = self.module.hidden(x)
        squares_F = hidden.double().square().flatten(0, -2).sum(0)
        self._squares_F = squares_F if self._squares_F is None else self._squares_F + squares_F
        self._count += hidden[..., 0].numel()
        self._power += float(wanted.double().square().sum())
        self._error += float((self.module.out(hidden) - wanted).double().square().sum())

    @torch.no_grad()
    def solve(self) -> dict[str, float]:
        """Sort; return the share of the sum that the first learner holds, and the squared error of all learners
        relative to the output, which only the rank of a projection makes."""
        assert self._squares_F is not None, "a solver solves after it observed"
        module = self.module
        importance_F = self._squares_F / self._count * module.out.weight.double().square().sum(0)
        order_F = arrange(module, importance_F)
        first = importance_F[order_F][: module.edges[1]].sum() / importance_F.sum().clamp_min(1e-30)
        return {"first_learner": float(first), "error": self._error / max(self._power, 1e-30)}


def arrange(module: AdaptiveModule, importance_F: Tensor) -> Tensor:
    """Sort the hidden units of a module in place, the most important first; return their order [F]."""
    return rearrange(module, importance_F.argsort(descending=True, stable=True))


@torch.no_grad()
def rearrange(module: AdaptiveModule, order_F: Tensor) -> Tensor:
    """Put the hidden units of a module in an order [F] in place; return it."""
    for layer in module.layers:
        layer.weight.copy_(layer.weight[order_F])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[order_F])
    module.out.weight.copy_(module.out.weight[:, order_F])
    return order_F
