"""Temporally adaptive interpolated distillation.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Batch, MatchContext, Options
from xarch.matching.objectives.dense import counted, total
from xarch_objectives.labelled import LogitObjective

FAINTEST = 1e-15
"""Added to the previous loss, as the authors do."""


class TAIDOptions(Options):
    """Options of ``taid``."""

    start: float = Field(0.4, ge=0, le=1, description="share t of the teacher in the target at first")
    end: float = Field(1.0, ge=0, le=1, description="and at last")
    rate: float = Field(5e-4, ge=0, description="step α of t; 0: t grows linearly")
    momentum: float = Field(0.99, ge=0, lt=1, description="of the relative fall of the loss")


class TAID(LogitObjective):
    """−Σ_k p_k log q_k with q = softmax(s) and the target p = softmax((1 − t) sg(s) + t z) between the student and the
    teacher z (Shing et al., arXiv 2501.16937, and its code). After every step, with loss L_n, of which the first is
    only kept: δ = (L_{n−1} − L_n) / L_{n−1}; m ← μ m + (1 − μ) δ; t ← min(end, max(linear, t + α σ(m) (1 − t))). t
    never falls; t, m and L are in checkpoints."""

    Options = TAIDOptions
    summed = frozenset({"step_loss"})
    step_loss: Tensor
    step: Tensor
    t: Tensor
    m: Tensor
    previous: Tensor

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self.register_buffer("step_loss", torch.zeros(2))
        self.register_buffer("t", torch.tensor(float(options.start)))
        self.register_buffer("m", torch.zeros(()))
        self.register_buffer("previous", torch.tensor(torch.nan))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        loss_B = total(self.positions(*self.sides(student, teacher, mask)), mask)
        if self.training:
            self.step_loss += torch.stack([loss_B.detach().sum(), counted(batch, mask).sum()]).to(self.step_loss)
        return loss_B

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        between = torch.lerp(student_BPF.detach(), teacher_BPF, self.t.to(student_BPF))
        return -(between.softmax(-1) * F.log_softmax(student_BPF, -1)).sum(-1)

    def after_step(self) -> None:
        options, first = self.options, self.previous.isnan()
        loss = self.step_loss[0] / self.step_loss[1].clamp_min(FAINTEST)
        self.step += 1
        fall = torch.where(first, 0.0, (self.previous - loss) / (self.previous + FAINTEST))
        m = options.momentum * self.m + (1 - options.momentum) * fall
        linear = options.start + (options.end - options.start) * self.step / max(self.context.steps, 1)
        grown = self.t + options.rate * torch.sigmoid(m) * (1 - self.t)
        t = torch.maximum(linear, grown).clamp_max(options.end)
        self.t.copy_(torch.where(first, self.t, t))
        self.m.copy_(torch.where(first, self.m, m))
        self.previous.copy_(loss)

    def monitor(self) -> dict[str, float]:
        return {**super().monitor(), "t": float(self.t)}
