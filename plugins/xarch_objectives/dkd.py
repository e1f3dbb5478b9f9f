"""Decoupled knowledge distillation.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options, divergence
from xarch_objectives.labelled import LabelledObjective


class DKDOptions(Options):
    """Options of ``dkd``."""

    alpha: float = Field(1.0, ge=0, description="weight of the term of the label's class")
    beta: float = Field(8.0, ge=0, description="weight of the term of the other classes; the paper: 0.5 on ImageNet")
    temperature: float = Field(4.0, gt=0, description="softens both sides; the loss is scaled by its square")


class DKD(LabelledObjective):
    """T² [α KL(b_t ‖ b_s) + β KL(p̂ ‖ q̂)], with b = (p_y, 1 − p_y) and p̂, q̂ the softmax over the classes other than
    the label y (Zhao et al., arXiv 2203.08679). KL(p ‖ q) = KL(b_t ‖ b_s) + (1 − p_y) KL(p̂ ‖ q̂)."""

    Options = DKDOptions

    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        heat = self.options.temperature
        log_q, log_p = (F.log_softmax(z / heat, -1) for z in (student_BPK, teacher_BPK))
        label = divergence(_binary(log_p, label_BPK), _binary(log_q, label_BPK))
        others = divergence(_others(log_p, label_BPK), _others(log_q, label_BPK))
        return heat**2 * (self.options.alpha * label + self.options.beta * others)


def _binary(log_p: Tensor, label_BPK: Tensor) -> Tensor:
    """Return log (p_y, 1 − p_y) [B, P, 2]."""
    own = (log_p * label_BPK).sum(-1)
    return torch.stack([own, torch.logsumexp(log_p.masked_fill(label_BPK > 0, -torch.inf), -1)], -1)


def _others(log_p: Tensor, label_BPK: Tensor) -> Tensor:
    """Return the log of the distribution over the other classes; -inf at the label, which counts for nothing."""
    return F.log_softmax(log_p.masked_fill(label_BPK > 0, -torch.inf), -1)
