"""Multi-level logit distillation.

Legend: B samples, T temperatures, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options, divergence
from xarch_objectives.relations import RelationObjective


class MLLDOptions(Options):
    """Options of ``mlld``."""

    temperatures: list[float] = Field([2.0, 3.0, 4.0, 5.0, 6.0], min_length=1, description="all are used at once")


class MLLD(RelationObjective):
    """mean over temperatures T of T² KL(p ‖ q), plus ‖G(q) − G(p)‖² / B with G = q qᵀ between samples, plus ‖M(q) −
    M(p)‖² / K with M = qᵀ q between classes (Jin, Wang and Lin, "Multi-level logit distillation", CVPR 2023)."""

    Options = MLLDOptions
    units = "nats and squared value"
    flat = True

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        terms = []
        for heat in self.options.temperatures:
            log_q, log_p = (F.log_softmax(z / heat, -1) for z in (student_BD, teacher_BD))
            q_BK, p_BK = (x.exp() * present_B[:, None] for x in (log_q, log_p))
            samples = (q_BK @ q_BK.T - p_BK @ p_BK.T).square().sum() / present_B.sum().clamp_min(1)
            classes = (q_BK.T @ q_BK - p_BK.T @ p_BK).square().sum() / q_BK.shape[1]
            terms.append(heat**2 * divergence(log_p, log_q) + samples + classes)
        return torch.stack(terms).mean(0)
