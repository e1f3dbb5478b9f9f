"""Probabilistic knowledge transfer.

Legend: B samples, D features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from xarch.matching.objectives.dense import FAINTEST
from xarch_objectives.relations import RelationObjective, pairs

SMALL = 1e-7
"""Added to probabilities, as the authors do."""


class PKT(RelationObjective):
    """mean_i Σ_j p_ij log(p_ij / q_ij) with p_ij ∝ (1 + cos(t_i, t_j)) / 2 over the other samples j, and q likewise of
    the student (Passalis and Tefas, arXiv 1803.10837). Every sample has its own row."""

    units = "nats"

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        both_BB = pairs(present_B)
        q_BB, p_BB = _near(student_BD, both_BB), _near(teacher_BD, both_BB)
        return (p_BB * ((p_BB + SMALL) / (q_BB + SMALL)).log()).sum(1)


def _near(value_BD: Tensor, both_BB: Tensor) -> Tensor:
    unit_BD = F.normalize(value_BD, dim=1, eps=FAINTEST)
    near_BB = (1 + unit_BD @ unit_BD.T) / 2 * both_BB
    return near_BB / near_BB.sum(1, keepdim=True).clamp_min(FAINTEST)
