"""Weighted soft labels.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options
from xarch_objectives.labelled import LabelledObjective

FAINTEST = 1e-7
"""Added to the teacher's loss, as the authors do."""


class WSLDOptions(Options):
    """Options of ``wsld``."""

    temperature: float = Field(2.0, gt=0, description="softens both sides; the loss is scaled by its square")


class WSLD(LabelledObjective):
    """w T² Σ_k −p_k log q_k with p = softmax(t/T), q = softmax(s/T) and w = 1 − exp(−CE(s, y) / CE(t, y)): samples on
    which the student is worse than the teacher count more (Zhou et al., arXiv 2102.00650). w has no gradient."""

    Options = WSLDOptions

    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        heat = self.options.temperature
        own, other = (-(F.log_softmax(z.detach(), -1) * label_BPK).sum(-1) for z in (student_BPK, teacher_BPK))
        weight_BP = 1 - (-own / (other + FAINTEST)).exp()
        soft_BP = -((teacher_BPK / heat).softmax(-1) * F.log_softmax(student_BPK / heat, -1)).sum(-1)
        return weight_BP * heat**2 * soft_BP
