"""Agreement with another view of a sample, where that one is right.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from xarch import MatchContext, Options, divergence
from xarch_objectives.labelled import LabelledObjective
from xarch_objectives.logit_adjustment import log_prior


class ConsistencyOptions(Options):
    """Options of ``consistency``."""

    strength: float = Field(
        0.0, description="τ of both sides: logits + τ log(share of the class), see logit-adjustment"
    )


class Consistency(LabelledObjective):
    """KL(p ‖ q) where the right side p, another view of the sample, gives the label the largest probability, else 0
    (MDCS, arXiv 2308.09922). It is a mean over all samples, those authors' over the ones that count."""

    Options = ConsistencyOptions

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self._prior_K = log_prior(context) if options.strength else None

    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        if self._prior_K is not None:
            shift_K = self.options.strength * self._prior_K.to(student_BPK)
            student_BPK, teacher_BPK = student_BPK + shift_K, teacher_BPK + shift_K
        right_BP = teacher_BPK.argmax(-1) == label_BPK.argmax(-1)
        own_BPK, other_BPK = student_BPK.log_softmax(-1), teacher_BPK.log_softmax(-1)
        return divergence(other_BPK, own_BPK) * right_BP
