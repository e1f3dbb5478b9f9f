"""Softmax regression through the teacher's classifier.

Legend: B samples, D features of the teacher, K classes.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from xarch import Batch, MatchContext, PlanError, Tap
from xarch.matching.objectives.dense import PairObjective, dense_form, features, opened, rows, total

WEIGHT, BIAS = "classifier.weight", "classifier.bias"


class SRRL(PairObjective):
    """mean_k (h_t(r(s))_k − z_k)² with h_t the teacher's classifier and z its logits, for the student's penultimate
    features through a connector r of the teacher's width (Yang et al., "Knowledge distillation via softmax regression
    representation learning", ICLR 2021). The paper adds the squared error of the features, a match of its own. The
    teacher needs the constant ``classifier.weight``."""

    units = "squared value"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        if WEIGHT not in context.teacher:
            raise PlanError(
                f"matches.{context.match}: srrl reads {WEIGHT} of the teacher, which gives {list(context.teacher)}",
                "use a teacher whose classifier is one linear layer",
            )
        width = context.teacher[WEIGHT].shape[1]
        if features(self.student_tap) != width:
            raise PlanError(
                f"matches.{context.match}: the teacher's classifier reads {width} features", "through: linear"
            )

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        own, other = dense_form(student).layout, "" if teacher is None else dense_form(teacher).layout
        return None if len(own) == len(other) else f"{own} and {other} have different numbers of axes"

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        own_BPD = rows(opened(student), self.student_tap.layout)
        weight, bias = self.context.teacher[WEIGHT], self.context.teacher.get(BIAS)
        made_BPK = F.linear(own_BPD, weight.to(own_BPD), None if bias is None else bias.to(own_BPD))
        return total((made_BPK - self.right(teacher)).square().mean(-1), mask)
