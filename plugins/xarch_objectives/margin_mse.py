"""Margins between classes or candidates.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch import Batch
from xarch.matching.objectives.dense import total
from xarch_objectives.labelled import LabelledObjective


class MarginMSE(LabelledObjective):
    """mean_{k≠y} [(s_y − s_k) − (t_y − t_k)]²: the differences between the scores of the right class, or of the
    relevant candidate, and the others, whatever the scale of either side (Hofstätter et al., arXiv 2010.02666). Without
    labels y is the class that the teacher finds likeliest."""

    units = "squared value"
    aux = frozenset({"labels"})

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        if "labels" in aux:
            return super().forward(student, teacher, batch, mask=mask, **aux)
        student_BPK, teacher_BPK, _ = self.sides(student, teacher, mask)
        label_BPK = torch.zeros_like(teacher_BPK).scatter_(-1, teacher_BPK.argmax(-1, keepdim=True), 1.0)
        return total(self.labelled(student_BPK, teacher_BPK, label_BPK), mask)

    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        apart_BPK = student_BPK - teacher_BPK
        margin_BPK = (apart_BPK * label_BPK).sum(-1, keepdim=True) - apart_BPK
        return margin_BPK.square().sum(-1) / (apart_BPK.shape[-1] - 1)
