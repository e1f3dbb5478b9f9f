"""Curriculum temperature.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import MatchContext, Options, divergence
from xarch_objectives.labelled import LogitObjective


class CTKDOptions(Options):
    """Options of ``ctkd``."""

    start: float = Field(1.0, gt=0, description="least temperature")
    range: float = Field(20.0, gt=0, description="span of temperatures above it")
    reverse: float = Field(1.0, ge=0, description="strength λ of the adversary; {start: 0, end: 1, shape: cosine}")


class CTKD(LogitObjective):
    """T² KL(p ‖ q) with a learned temperature T = start + range · σ(θ) whose gradient is reversed: it grows as hard for
    the student as λ allows (Li et al., arXiv 2211.16231, the global form). Train it: ``trains: {objectives: {}}``."""

    Options = CTKDOptions

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self.theta = nn.Parameter(torch.zeros(()))

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        factor = self.options.reverse
        turned = -factor * self.theta + ((1 + factor) * self.theta).detach()
        heat = self.options.start + self.options.range * turned.sigmoid()
        log_q, log_p = (F.log_softmax(z / heat, -1) for z in (student_BPF, teacher_BPF))
        return heat**2 * divergence(log_p, log_q)

    def monitor(self) -> dict[str, float]:
        heat = self.options.start + self.options.range * self.theta.detach().sigmoid()
        return {**super().monitor(), "temperature": float(heat)}
