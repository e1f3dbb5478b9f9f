"""A bound of the mutual information between both sides.

Legend: B samples, D features, E features of the critic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch import MatchContext, Options
from xarch.matching.objectives.dense import FAINTEST, features
from xarch_objectives.relations import RelationObjective, pairs


class MIAlphaOptions(Options):
    """Options of ``mi-alpha``."""

    alpha: float = Field(0.9, ge=0, le=1, description="1: InfoNCE, low variance; 0: the bound of NWJ, low bias")
    width: int = Field(128, ge=1, le=1 << 16, description="features of the critic")


class MIAlpha(RelationObjective):
    """−I_α with I_α = 1 + mean_i [f_ii − log m_i] − mean_{i≠k} e^{f_ik} / m_k, f_ik = ⟨g(s_i), h(t_k)⟩ / √E the trained
    critic, and m = α mean_j e^{f_j·} + (1 − α) e over the samples j, of the second term without the k-th (the bound of
    Poole et al., used by He et al., arXiv 2109.11105). Train it: ``trains: {objectives: {}}``."""

    Options = MIAlphaOptions
    units = "-nats"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        own, other = features(self.student_tap) or 1, features(self.teacher_tap) or 1
        self.own, self.other = (_critic(width, options.width) for width in (own, other))

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        score_BB = self.own(student_BD) @ self.other(teacher_BD).T / math.sqrt(self.options.width)
        both_BB, count = pairs(present_B), present_B.sum().clamp_min(1)
        everyone_BB = both_BB + torch.diag(present_B)
        joint = (score_BB.diagonal() - self._log_mean(score_BB, everyone_BB)) * present_B
        apart = (score_BB - self._log_mean(score_BB, both_BB)).exp() * both_BB
        return -(1 + joint.sum() / count - apart.sum() / both_BB.sum().clamp_min(1))

    def _log_mean(self, score_BB: Tensor, kept_BB: Tensor) -> Tensor:
        """Return log m of every column [B]."""
        kept = score_BB.masked_fill(kept_BB == 0, -1e30)
        mean_B = kept.logsumexp(0) - kept_BB.sum(0).clamp_min(1).log()
        alpha = self.options.alpha
        fixed = torch.full_like(mean_B, 1 + math.log(max(1 - alpha, FAINTEST)))
        if alpha == 1:
            return mean_B
        return torch.logaddexp(mean_B + math.log(alpha), fixed) if alpha else fixed


def _critic(own: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(own, width), nn.ReLU(), nn.Linear(width, width))
