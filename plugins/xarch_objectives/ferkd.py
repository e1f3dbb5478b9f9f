"""Targets by how sure the teacher is.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options
from xarch_objectives.labelled import LabelledObjective


class FerKDOptions(Options):
    """Options of ``ferkd``; the thresholds are derived, not the paper's."""

    low: float = Field(0.15, ge=0, le=1, description="largest probability below which a view is dropped")
    middle: float = Field(0.5, ge=0, le=1, description="below it the target is the smoothed label")
    high: float = Field(1.0, ge=0, le=1, description="above it the target is the label itself; 1: never")
    smoothing: float = Field(0.1, ge=0, lt=1, description="share of the smoothed label that the other classes get")


class FerKD(LabelledObjective):
    """−Σ_k y_k log q_k with the target y chosen by the teacher's largest probability p: none below `low` (a view
    without the object), the label with 1 − ε and ε/(K−1) elsewhere below `middle`, the label above `high`, else p
    itself (Shen, arXiv 2308.14678). A dropped view counts as one of loss 0."""

    Options = FerKDOptions

    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        options, p_BPK = self.options, teacher_BPK.softmax(-1)
        sure_BP1 = p_BPK.amax(-1, keepdim=True)
        others = options.smoothing / (label_BPK.shape[-1] - 1)
        smooth_BPK = torch.where(label_BPK > 0, 1 - options.smoothing, others)
        target_BPK = torch.where(sure_BP1 < options.middle, smooth_BPK, p_BPK)
        target_BPK = torch.where(sure_BP1 > options.high, label_BPK, target_BPK)
        loss_BP = -(target_BPK * F.log_softmax(student_BPK, -1)).sum(-1)
        return torch.where(sure_BP1[..., 0] < options.low, 0.0, loss_BP)
