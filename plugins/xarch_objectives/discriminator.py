"""A discriminator between the outputs of student and teacher.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import MatchContext, Options
from xarch.matching.objectives.dense import features
from xarch_objectives.labelled import LogitObjective


class DiscriminatorOptions(Options):
    """Options of ``discriminator``."""

    reverse: float = Field(1.0, description="factor −λ of the gradient into the student; negative: it helps to be told")


class Discriminator(LogitObjective):
    """BCE of three layers K → K/2 → K/4 → 2 that tell the student's logits from the teacher's, whose gradient reaches
    the student with the opposite sign, so that one step trains both players (MEAL V2, Shen and Savvides, arXiv
    2009.08453; the reversed gradient is derived). Beside ``kl`` on the mean of several teachers, ``teacher:
    "*:logits"``. Train it: ``trains: {objectives: {lr: 0.01}}``."""

    Options = DiscriminatorOptions

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        wide = features(self.student_tap) or 1
        half, quarter = max(wide // 2, 1), max(wide // 4, 1)
        self.net = nn.Sequential(
            nn.Linear(wide, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, 2)
        )

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        factor = self.options.reverse
        turned_BPK = -factor * student_BPF + ((1 + factor) * student_BPF).detach()
        told = self.net(torch.stack([turned_BPK, teacher_BPF]))
        truth = F.one_hot(torch.tensor([0, 1], device=told.device), 2).to(told)[:, None, None].expand_as(told)
        return F.binary_cross_entropy_with_logits(told, truth, reduction="none").mean((0, -1))
