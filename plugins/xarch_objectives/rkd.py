"""Relational knowledge distillation.

Legend: B samples, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options
from xarch.matching.objectives.dense import FAINTEST
from xarch_objectives.relations import RelationObjective, pairs


class RKDOptions(Options):
    """Options of ``rkd``."""

    distance: float = Field(25.0, ge=0, description="weight of the distances between samples")
    angle: float = Field(50.0, ge=0, description="weight of the angles; memory grows with the cube of the batch")


class RKD(RelationObjective):
    """λ_D mean_ij H(ψ_ij(s), ψ_ij(t)) + λ_A mean_ijk H(cos∠_ijk(s), cos∠_ijk(t)) with ψ_ij = ‖f_i − f_j‖ over its mean
    over pairs, ∠_ijk the angle at j between i and k, and H Huber's loss (Park et al., arXiv 1904.05068)."""

    Options = RKDOptions
    units = "Huber"

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        count, both_BB = present_B.sum().clamp_min(1), pairs(present_B)
        own_BB, other_BB = _distances(student_BD, both_BB), _distances(teacher_BD, both_BB)
        loss = self.options.distance * (F.huber_loss(own_BB, other_BB, reduction="none")).sum() / count**2
        if self.options.angle:
            apart = F.huber_loss(_angles(student_BD), _angles(teacher_BD), reduction="none")
            # The corner i and both ends j, k are present.
            kept = present_B[:, None, None] * present_B[:, None] * present_B
            loss = loss + self.options.angle * (apart * kept).sum() / count**3
        return loss


def _distances(value_BD: Tensor, both_BB: Tensor) -> Tensor:
    """Return distances over their mean, 0 outside of the pairs."""
    square_BB = (value_BD[:, None] - value_BD).square().sum(-1)
    distance_BB = (square_BB + FAINTEST).sqrt() * both_BB
    return distance_BB / (distance_BB.sum() / both_BB.sum().clamp_min(1) + FAINTEST)


def _angles(value_BD: Tensor) -> Tensor:
    """Return the cosine of the angle at sample i between the samples j and k [B, B, B]."""
    unit_BBD = F.normalize(value_BD - value_BD[:, None], dim=-1, eps=FAINTEST)
    return torch.matmul(unit_BBD, unit_BBD.transpose(1, 2))
