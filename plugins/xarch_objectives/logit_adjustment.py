"""Classes shifted by how frequent they are.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import MatchContext, PlanError
from xarch.matching.objectives.labels import CrossEntropy, CrossEntropyOptions


def log_prior(context: MatchContext) -> Tensor:
    """Return the log of every class's share of the training data, float32 [K].

    Raises:
        PlanError: the data do not count their classes, or one has no sample.
    """
    counts = list(context.data.get("class_counts") or ())
    if not counts or min(counts) < 1:
        raise PlanError(
            f"matches.{context.match}: shares of classes require class_counts of the data, not {counts[:8]}",
            "use data whose provider counts its classes",
        )
    # On the CPU even when the plan builds on meta: the values are read at run time.
    count_K = torch.tensor(counts, dtype=torch.float64, device="cpu")
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
