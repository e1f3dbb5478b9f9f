"""Correlation between two sides, invariant to scale and offset.

Legend: B samples, P positions, F features, N rows that are correlated.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.objective import Coupling
from xarch.contracts.options import Options
from xarch.matching.objectives.dense import FAINTEST, DenseObjective, counted, opened, rows, spread, total


class CorrelationOptions(Options):
    """Options of ``correlation``."""

    across: Literal["features", "batch"] = Field(
        "features", description="features: at every position; batch: of every feature over all positions of the batch"
    )
    temperature: float | None = Field(
        None, gt=0, description="compare softmax(value / temperature), as DIST does; null: the values"
    )


class Correlation(DenseObjective):
    """1 − Pearson's correlation (DIST, arXiv 2205.10536: both, over classes and over the batch).

    Over the batch, a sample's loss depends on the others, and all samples have the same loss.
    """

    Options = CorrelationOptions
    units = "1 - correlation"

    @property
    def couples(self) -> Coupling:
        return "batch" if self.options.across == "batch" else "sample"

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        student_BPF = self._softened(rows(opened(student), self.student_tap.layout))
        teacher_BPF = self._softened(self.right(teacher))
        mask_BP = spread(mask, student_BPF[..., 0].detach())
        if self.options.across == "features":
            return total(self.positions(student_BPF, teacher_BPF, mask_BP), mask)
        columns_FN = student_BPF.flatten(0, 1).T, teacher_BPF.flatten(0, 1).T
        return (1 - pearson(*columns_FN, mask_BP.flatten())).mean().expand(len(student_BPF))

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        return 1 - pearson(student_BPF, teacher_BPF, torch.ones_like(student_BPF[0, 0]))

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return counted(batch, mask if self.options.across == "features" else None)

    def _softened(self, value_BPF: Tensor) -> Tensor:
        heat = self.options.temperature
        return value_BPF if heat is None else (value_BPF / heat).softmax(-1)


def pearson(a: Tensor, b: Tensor, weight_N: Tensor) -> Tensor:
    """Return the weighted correlation over the last axis [..., N] -> [...]; 0 if one side is constant."""
    share_N = weight_N / weight_N.sum().clamp_min(FAINTEST)
    a, b = (x - (x * share_N).sum(-1, keepdim=True) for x in (a, b))
    power = (a.square() * share_N).sum(-1) * (b.square() * share_N).sum(-1)
    return (a * b * share_N).sum(-1) * (power + FAINTEST**2).rsqrt()
