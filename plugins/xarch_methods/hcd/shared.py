"""Shared logits of a student's features and a teacher's.

Legend: B samples, D width, N parts, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import Batch, MatchContext, Options, PlanError, Tap, divergence
from xarch.matching.objectives.dense import FAINTEST, PairObjective, features, opened, rows


class HCDOptions(Options):
    """Options of ``hcd``."""

    parts: int = Field(4, ge=2, le=64, description="number of parts N of the shared logits")
    apart: float = Field(1.0, ge=0, description="weight of the cosines between parts")


class HCD(PairObjective):
    """mean_n [CE(z_n + t, y) + KL(t ‖ z_n)] + λ mean_{n≠m} cos²(z_n, z_m) with t the teacher's logits, y the label and
    z = W [r(s), f], N parts of shared logits of the student's pooled features s through a projection r and of the
    teacher's penultimate ones f (Xu et al., arXiv 2511.10942, from its abstract: terms and weights are derived)."""

    Options = HCDOptions
    units = "nats"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        own, other = features(self.student_tap), features(self.teacher_tap)
        self.classes = int(context.data.get("classes", 0))
        if not (own and other and self.classes):
            raise PlanError(f"matches.{context.match}: hcd needs taps of known width and data with `classes`")
        # Before pooling: a normalisation of the places of one sample, so that the batch can be split.
        self.project = nn.Sequential(nn.Linear(own, other), nn.LayerNorm(other), nn.GELU())
        self.share = nn.Linear(2 * other, options.parts * self.classes)

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return None

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout == student.layout[0]

    def forward(  # type: ignore[override]
        self, student: Any, teacher: Any, batch: Batch, *, logits: Any, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        own_BD = self.project(rows(opened(student), self.student_tap.layout)).mean(1)
        shared_BD = torch.cat([own_BD, self.right(teacher).mean(1)], 1)
        part_BNK = self.share(shared_BD).unflatten(1, (self.options.parts, self.classes))
        known_B1K = opened(logits).to(part_BNK)[:, None]
        label_B1K = (labels if labels.ndim > 1 else F.one_hot(labels.long(), self.classes)).to(part_BNK)[:, None]
        right_BN = -(label_B1K * F.log_softmax(part_BNK + known_B1K, -1)).sum(-1)
        like_BN = divergence(F.log_softmax(known_B1K, -1), F.log_softmax(part_BNK, -1))
        unit_BNK = F.normalize(part_BNK, dim=-1, eps=FAINTEST)
        apart_BNN = (unit_BNK @ unit_BNK.transpose(1, 2)).square().triu(1)
        count = self.options.parts * (self.options.parts - 1) / 2
        loss_B = (right_BN + like_BN).mean(1) + self.options.apart * apart_BNN.sum((1, 2)) / count
        return loss_B if mask is None else loss_B * mask
