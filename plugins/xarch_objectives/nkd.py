"""Normalised knowledge distillation.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options
from xarch_objectives.labelled import LabelledObjective


class NKDOptions(Options):
    """Options of ``nkd``."""

    gamma: float = Field(1.5, ge=0, description="weight of the classes other than the label")
    temperature: float = Field(1.0, gt=0, description="softens the other classes; their term is scaled by its square")


class NKD(LabelledObjective):
    """−p_y log q_y − γ T² Σ_{k≠y} p̂_k log q̂_k, with p̂, q̂ the softmax at T over the classes other than the label y,
    so that both sum to 1 (Yang et al., arXiv 2303.17005). The cross-entropy with the label is a match of its own."""

    Options = NKDOptions

    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        heat, is_label = self.options.temperature, label_BPK > 0
        p_y = (teacher_BPK.softmax(-1) * label_BPK).sum(-1)
        label = -p_y * (F.log_softmax(student_BPK, -1) * label_BPK).sum(-1)
        p_BPK, q_BPK = ((z / heat).masked_fill(is_label, -torch.inf) for z in (teacher_BPK, student_BPK))
        log_q = F.log_softmax(q_BPK, -1).masked_fill(is_label, 0.0)
        return label - self.options.gamma * heat**2 * (p_BPK.softmax(-1) * log_q).sum(-1)
