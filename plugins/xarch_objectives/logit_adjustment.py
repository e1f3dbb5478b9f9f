"""Classes shifted by how frequent they are.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from xarch import MatchContext
from xarch.matching.objectives.balance import class_counts
from xarch.matching.objectives.labels import CrossEntropy, CrossEntropyOptions


def log_prior(context: MatchContext) -> Tensor:
    """Return the log of every class's share of the training data, float32 [K].

    Raises:
        PlanError: the data do not count their classes, or one has no sample.
    """
    count_K = class_counts(context.data, context.match, "a shift by the classes' shares")
    return (count_K / count_K.sum()).log().float()


class LogitAdjustmentOptions(CrossEntropyOptions):
    """Options of ``logit-adjustment``."""

    strength: float = Field(
        1.0, description="τ: 1 answers as if classes were equally frequent, more prefers rare ones, less frequent ones"
    )


class LogitAdjustment(CrossEntropy):
    """Cross-entropy of logits + τ log π, π being the classes' shares of the training data (Menon et al., arXiv
    2007.07314). The student is used without the shift."""

    Options = LogitAdjustmentOptions

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self._prior_K = log_prior(context)

    def scores(self, student_BPK: Tensor, label: Tensor) -> Tensor:
        return student_BPK + self.options.strength * self._prior_K.to(student_BPK)
