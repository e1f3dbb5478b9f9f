"""Distillation of standardised logits.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options, divergence
from xarch_objectives.labelled import LogitObjective

FAINTEST = 1e-14
"""Added to the variance: equal logits have no deviation."""


class LogitStdOptions(Options):
    """Options of ``logit-std``."""

    temperature: float = Field(2.0, gt=0, description="softens standardised logits; the loss is scaled by its square")


class LogitStd(LogitObjective):
    """T² KL(softmax(Z(t)/T) ‖ softmax(Z(s)/T)) with Z(z) = (z − mean z) / std z over the classes, so that the student
    need not reach the teacher's scale (Sun et al., arXiv 2403.01427)."""

    Options = LogitStdOptions

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        heat = self.options.temperature
        log_q, log_p = (F.log_softmax(standardised(z) / heat, -1) for z in (student_BPF, teacher_BPF))
        return heat**2 * divergence(log_p, log_q)


def standardised(z: Tensor) -> Tensor:
    """Return logits [..., K] with mean 0 and deviation 1."""
    return (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True) + FAINTEST).sqrt()
