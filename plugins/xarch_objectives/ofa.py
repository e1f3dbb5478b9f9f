"""Target-enhanced distillation of OFA-KD.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import MatchContext, Options
from xarch.matching.objectives.dense import rows
from xarch_objectives.labelled import LabelledObjective


class OFAOptions(Options):
    """Options of ``ofa``."""

    gamma: float | Literal["auto"] = Field(
        1.0, description="exponent γ; 1: plain distillation; auto: 1 to 1.5, larger where the teacher is less sure"
    )
    variant: Literal["code", "paper"] = Field("code", description="code: every class to the power γ; paper: the label")
    target: Literal["argmax", "soft"] = Field("argmax", description="what mixed labels enhance: one class, or all")
    temperature: float = Field(1.0, gt=0, description="softens both sides; the loss is not scaled by its square")


class OFA(LabelledObjective):
    """−Σ_k w_k log q_k, where w = (p + m)^γ − m (code), or w = p but (1 + p_y)^γ − 1 at the label y (paper), with
    p = softmax(t/T), q = softmax(s/T) and m the one-hot label (Hao et al., arXiv 2310.19444, and its code). γ = 1 is
    KL(p ‖ q) plus the entropy of p.

    ``auto`` sets γ = clip(1 + (1 − p̄_y)/2, 1, 1.5), with p̄_y the mean of p_y over the samples so far; it is derived.
    """

    Options = OFAOptions
    summed = frozenset({"sure"})
    sure: Tensor
    seen: Tensor

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self.register_buffer("sure", torch.zeros(2))
        self.register_buffer("seen", torch.zeros(2))

    def target(self, labels: Tensor, student_BPK: Tensor) -> tuple[Tensor, Tensor]:
        label_BPK, known_BP = super().target(labels, student_BPK)
        mixed = self.options.target == "soft" and labels.ndim == len(self.student_tap.layout)
        return (rows(labels, self.student_tap.layout) if mixed else label_BPK), known_BP

    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        p_BPK = (teacher_BPK / self.options.temperature).softmax(-1)
        if self.training:
            with torch.no_grad():
                p_y = (p_BPK * label_BPK).sum(-1)
                self.sure += torch.stack([p_y.sum(), torch.ones_like(p_y).sum()]).to(self.sure)
        gamma = self.gamma()
        if self.options.variant == "code":
            weight_BPK = (p_BPK + label_BPK) ** gamma - label_BPK
        else:
            weight_BPK = p_BPK + label_BPK * ((1 + p_BPK) ** gamma - 1 - p_BPK)
        return -(weight_BPK * F.log_softmax(student_BPK / self.options.temperature, -1)).sum(-1)

    def gamma(self) -> Any:
        """Return the exponent: a number, or a tensor [] if it follows the teacher."""
        if self.options.gamma != "auto":
            return self.options.gamma
        sure = self.seen[0] / self.seen[1].clamp_min(1)
        return torch.where(self.seen[1] > 0, (1 + 0.5 * (1 - sure)).clamp(1.0, 1.5), 1.0)

    def after_step(self) -> None:
        self.seen += self.sure

    def monitor(self) -> dict[str, float]:
        return {**super().monitor(), "gamma": float(self.gamma())}
