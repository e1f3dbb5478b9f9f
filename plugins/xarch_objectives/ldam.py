"""Margins for rare classes.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import MatchContext
from xarch.matching.objectives.balance import class_counts
from xarch.matching.objectives.labels import CrossEntropy, CrossEntropyOptions


class LDAMOptions(CrossEntropyOptions):
    """Options of ``ldam``."""

    margin: float = Field(0.5, ge=0, description="margin of the rarest class, in units of the cosine")
    scale: float = Field(1.0, gt=0, description="logits per unit: of a cosine classifier its scale, e.g. 30; else 1")


class LDAM(CrossEntropy):
    """Cross-entropy in which a label y must win by a margin: its logit is lowered by scale · margin · (n_y / n_min)^-¼,
    n being the class counts of the data (Cao et al., arXiv 1906.07413). Of probabilities, each class is lowered by its
    share of its margin."""

    Options = LDAMOptions

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        count_K = class_counts(context.data, context.match, "ldam")
        self._share_K = (count_K / count_K.min()).pow(-0.25).float()

    def scores(self, student_BPK: Tensor, label: Tensor) -> Tensor:
        margin_K = self.options.scale * self.options.margin * self._share_K.to(student_BPK)
        if label.ndim == 2:
            label = F.one_hot(label.clamp_min(0), len(margin_K))
        return student_BPK - margin_K * label
