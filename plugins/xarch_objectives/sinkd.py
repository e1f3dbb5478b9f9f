"""Sinkhorn distillation over the batch.

Legend: B samples, K classes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from xarch import Options
from xarch_objectives.relations import RelationObjective


class SinKDOptions(Options):
    """Options of ``sinkd``."""

    temperature: float = Field(2.0, gt=0, description="softens both sides")
    entropy: float = Field(0.1, gt=0, description="regularisation λ of the transport plan")
    iterations: int = Field(20, ge=1, le=10_000, description="normalisations of rows, then columns")


class SinKD(RelationObjective):
    """Σ_ij P_ij ‖p_i(s) − p_j(t)‖₁ / B with p = softmax(z/T) and P the plan exp(−cost/λ) after alternately normalising
    rows and columns: an optimal transport between the batches of both sides (Cui et al., arXiv 2402.17110). In logs.
    The authors' plan has mass B, so their weight of 8e-4 is 8e-4 · B here. For equal batches it is nearly 0, not 0."""

    Options = SinKDOptions
    units = "distance"
    flat = True

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        own_BK, other_BK = ((z / self.options.temperature).softmax(-1) for z in (student_BD, teacher_BD))
        cost_BB = (own_BK[:, None] - other_BK).abs().sum(-1)
        # A sample that is left out is carried to itself, at no cost.
        present_BB = present_B[:, None] * present_B
        same_BB = torch.eye(len(cost_BB), dtype=torch.bool, device=cost_BB.device)
        cost_BB = cost_BB * present_BB
        forbidden = (present_BB == 0) & ~same_BB
        plan_BB = (-cost_BB / self.options.entropy).masked_fill(forbidden, -1e30)
        for _ in range(self.options.iterations):
            plan_BB = plan_BB - plan_BB.logsumexp(1, keepdim=True)
            plan_BB = plan_BB - plan_BB.logsumexp(0, keepdim=True)
        return (plan_BB.exp() * cost_BB).sum(1)
