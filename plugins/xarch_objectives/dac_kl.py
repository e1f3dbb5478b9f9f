"""Divergence over a band of the teacher's distribution.

Legend: B samples, P positions, K classes, M classes that the small network sees.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import MatchContext, Options, divergence
from xarch_objectives.labelled import LogitObjective


class DACKLOptions(Options):
    """Options of ``dac-kl``."""

    band: Literal["learned", "random", "fixed"] = Field(
        "learned", description="how the band is found; random is the control, fixed keeps the top `mass`"
    )
    mass: float = Field(0.95, gt=0, le=1, description="fixed: share of the distribution that is kept")
    width: int = Field(64, ge=1, le=1 << 12, description="width of the small network")
    top: int = Field(16, ge=1, le=1 << 12, description="classes it sees of the sorted distribution")
    sharpness: float = Field(20.0, gt=0, description="steepness of the band's edges")


class DACKL(LogitObjective):
    """KL(p̃ ‖ q̃) with p̃ ∝ p · m and q̃ ∝ q · m, m being a soft band [a, b] of the teacher's cumulated probability,
    the likeliest class first, which a small network predicts for every position (Liu et al., arXiv 2407.10068, from its
    abstract: form of network and band are derived). Train it: ``trains: {objectives: {}}``."""

    Options = DACKLOptions

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        last = nn.Linear(options.width, 2)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([-4.0, 4.0])  # at first nearly everything is kept
        self.net = nn.Sequential(nn.Linear(options.top, options.width), nn.ReLU(), last)

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        log_p, order = F.log_softmax(teacher_BPF, -1).sort(-1, descending=True)
        log_q = F.log_softmax(student_BPF, -1).gather(-1, order)
        kept = self._log_band(log_p)
        clipped_p, clipped_q = (F.log_softmax(x + kept, -1) for x in (log_p, log_q))
        return divergence(clipped_p, clipped_q)

    def _log_band(self, log_p: Tensor) -> Tensor:
        p = log_p.exp()
        reached = p.cumsum(-1) - p / 2  # the middle of each class's own share
        if self.options.band == "fixed":
            return torch.where(reached <= self.options.mass, 0.0, -1e4)
        if self.options.band == "random":
            # Repeatable noise: the digits of the distribution itself.
            edges = (log_p[..., :1] * torch.tensor([1e3, 7e3], device=p.device, dtype=p.dtype)).sin().abs()
        else:
            seen = F.pad(p[..., : self.options.top], (0, max(self.options.top - p.shape[-1], 0)))
            edges = self.net(seen).sigmoid()
        low, high = edges.amin(-1, keepdim=True), edges.amax(-1, keepdim=True)
        sharp = self.options.sharpness
        return F.logsigmoid(sharp * (reached - low)) + F.logsigmoid(sharp * (high - reached))
