"""Distillation from a teacher of long-tailed data.

Legend: B samples, P positions, K classes, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import MatchContext, Options, PlanError, divergence
from xarch_objectives.labelled import LogitObjective


class LTKDOptions(Options):
    """Options of ``ltkd``."""

    groups: int = Field(3, ge=2, le=1 << 10, description="groups of equally many classes, by their counts")
    across: float = Field(1.0, ge=0, description="weight of the divergence between groups")
    within: float = Field(1.0, ge=0, description="weight of the divergences within groups")
    temperature: float = Field(1.0, gt=0, description="softens both sides; the loss is scaled by its square")


class LTKD(LogitObjective):
    """T² [α KL(P' ‖ Q) + β Σ_g KL(p_g ‖ q_g)], P and Q being the probability of every group of classes (head to tail),
    P' ∝ P over its mean so far, which takes away that the teacher prefers the head, and p_g, q_g the distributions
    within a group, whatever its mass (arXiv 2506.18496, from its abstract: groups and means are derived). With P' = P
    and P_g as weights it would be KL(p ‖ q)."""

    Options = LTKDOptions
    summed = frozenset({"step_mass"})
    step_mass: Tensor
    mass: Tensor
    group_GK: Tensor

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        counts = list(context.data.get("class_counts") or [])
        if len(counts) < options.groups:
            raise PlanError(f"matches.{context.match}: ltkd requires data with class_counts, at least one a group")
        rank = sorted(range(len(counts)), key=lambda k: -counts[k])
        group = [0] * len(counts)
        for place, k in enumerate(rank):
            group[k] = place * options.groups // len(counts)
        member = [[k == g for k in group] for g in range(options.groups)]
        self.register_buffer("group_GK", torch.tensor(member))
        self.register_buffer("mass", torch.zeros(options.groups))
        self.register_buffer("step_mass", torch.zeros(options.groups))

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        heat = self.options.temperature
        own, other = (self._parts(F.log_softmax(z / heat, -1)) for z in (student_BPF, teacher_BPF))
        if self.training:
            self.step_mass += (other[0].exp() * mask_BP[..., None]).sum((0, 1)).to(self.step_mass)
        mean_G = torch.where(self.mass.sum() > 0, self.mass / self.mass.sum().clamp_min(1e-12), 1 / len(self.mass))
        fair = F.log_softmax(other[0] - mean_G.clamp_min(1e-6).log().to(other[0]), -1)
        within = divergence(other[1], own[1]).sum(-1)
        return heat**2 * (self.options.across * divergence(fair, own[0]) + self.options.within * within)

    def _parts(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return log P [B, P, G] and log p_g [B, P, G, K], -inf outside of the group."""
        grouped = log_p[..., None, :].masked_fill(~self.group_GK, -torch.inf)
        mass = grouped.logsumexp(-1)
        return mass, grouped - mass[..., None]

    def after_step(self) -> None:
        self.mass += self.step_mass
