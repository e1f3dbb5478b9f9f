"""Similarity-preserving distillation.

Legend: B samples, D numbers per sample.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from xarch.matching.objectives.dense import FAINTEST
from xarch_objectives.relations import RelationObjective


class SP(RelationObjective):
    """‖G(s) − G(t)‖² / B² with G = Q Qᵀ, of which every row has norm 1, and Q [B, D] the numbers of every sample (Tung
    and Mori, arXiv 1907.09682)."""

    units = "squared value"
    flat = True

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        own_BB, other_BB = (F.normalize(q @ q.T, dim=1, eps=FAINTEST) for q in (student_BD, teacher_BD))
        return (own_BB - other_BB).square().sum() / present_B.sum().clamp_min(1) ** 2
