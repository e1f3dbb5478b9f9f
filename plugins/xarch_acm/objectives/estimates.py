"""What a gate expects to be lost, against what is lost.

Legend: B samples, L positions, K choices of a gate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch import Batch, Objective, Tap
from xarch.matching.objectives.dense import counted, total, wide


class Estimates(Objective):
    """mean_k [w log w − w·v − w + e^v] at every position, v the gate's logarithm and w the loss with that choice: the
    deviance of a Poisson variable, least where e^v is the mean of w, whatever its distribution."""

    accepts = frozenset({("BLK", "BLK")})
    units = "prices of a learner"

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout in ("B", "BL")

    def forward(
        self, student: Tensor, teacher: Tensor, batch: Batch, *, mask: Tensor | None = None, **aux: object
    ) -> Tensor:
        guess, lost = wide(student).clamp_max(LARGEST), wide(teacher).clamp_min(0)
        each = torch.xlogy(lost, lost) - lost * guess - lost + guess.exp()
        return total(each.mean(-1), mask)

    def weight(self, batch: Batch, target: object = None, *, mask: Tensor | None = None) -> Tensor:
        return counted(batch, mask)


LARGEST = 30.0
"""Largest logarithm, as in a gate."""
