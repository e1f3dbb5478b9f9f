"""Variational information distillation.

Legend: B samples, F and G features of student and teacher.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import MatchContext, Options
from xarch.matching.objectives.dense import features
from xarch_objectives.grids import GridObjective


class VIDOptions(Options):
    """Options of ``vid``."""

    variance: float = Field(5.0, gt=0, description="variance of every feature at first")
    least: float = Field(1e-5, gt=0, description="least variance")


class VID(GridObjective):
    """½ mean [(t − μ(s))² / σ_g² + log σ_g²]: the negative log-likelihood of the teacher's features under a Gaussian
    whose mean is regressed by three 1x1 convolutions and whose variance σ_g² = softplus(α_g) + ε is learned for every
    feature (Ahn et al., arXiv 1904.05835). Train it: ``trains: {objectives: {}}``."""

    Options = VIDOptions
    units = "nats/number"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        own, other = features(self.student_tap) or 1, features(self.teacher_tap) or 1
        self.mean = nn.Sequential(
            nn.Linear(own, other, bias=False),
            nn.ReLU(),
            nn.Linear(other, other, bias=False),
            nn.ReLU(),
            nn.Linear(other, other, bias=False),
        )
        self.raw_G = nn.Parameter(torch.full((other,), math.log(math.expm1(options.variance - options.least))))

    def samples(self, student: Tensor, teacher: Tensor) -> Tensor:
        variance_G = F.softplus(self.raw_G) + self.options.least
        mean = self.mean(student.movedim(1, -1))
        each = (teacher.movedim(1, -1) - mean).square() / variance_G + variance_G.log()
        return 0.5 * each.flatten(1).mean(1)
