"""Correlation congruence, in two forms.

Legend: B samples, D features, E features of the embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import MatchContext, Options
from xarch.matching.objectives.dense import FAINTEST, features
from xarch_objectives.relations import RelationObjective


class CCOptions(Options):
    """Options of ``corr`` and ``cckd``."""

    width: int = Field(128, ge=1, le=1 << 16, description="features of the trained embeddings of both sides")
    gamma: float = Field(0.4, gt=0, description="cckd: width of the kernel")
    order: int = Field(2, ge=1, le=8, description="cckd: last order of its Taylor series")


class Embedded(RelationObjective):
    """Base: both sides through linear maps of their own."""

    Options = CCOptions
    units = "squared value"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self.own, self.other = (
            nn.Linear(features(t) or 1, options.width) for t in (self.student_tap, self.teacher_tap)
        )


class Corr(Embedded):
    """mean_i Σ_e δ_ie δ_(i+1)e with δ = |e(s) − e(t)| (OFA-KD's code for Peng et al., arXiv 1904.01802; there with the
    weight 0.02). Neighbours are neighbours in the batch."""

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        apart_BE = (self.own(student_BD) - self.other(teacher_BD)).abs() * present_B[:, None]
        both_B = present_B[:-1] * present_B[1:]
        return (apart_BE[:-1] * apart_BE[1:]).sum() / both_B.sum().clamp_min(1)


class CCKD(Embedded):
    """‖K(s) − K(t)‖² / B² with K_ij = e^{−2γ} Σ_p (2γ)^p / p! (e_i · e_j)^p, the Taylor series of a Gaussian kernel of
    unit vectors e (Peng et al., arXiv 1904.01802)."""

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        own_BB, other_BB = self._kernel(self.own(student_BD)), self._kernel(self.other(teacher_BD))
        apart = (own_BB - other_BB).square() * present_B[:, None] * present_B
        return apart.sum() / present_B.sum().clamp_min(1) ** 2

    def _kernel(self, value_BE: Tensor) -> Tensor:
        unit_BE = F.normalize(value_BE, dim=1, eps=FAINTEST)
        gamma, near_BB = self.options.gamma, unit_BE @ unit_BE.T
        series = ((2 * gamma) ** p / math.factorial(p) * near_BB**p for p in range(self.options.order + 1))
        total: Tensor = sum(series)
        return math.exp(-2 * gamma) * total
