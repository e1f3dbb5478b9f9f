"""Different shares for different samples.

Legend: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xarch import Batch
from xarch_acm.objectives.choices import ChoiceObjective, present


class Spread(ChoiceObjective):
    """−mean_m |b_i − b_m| for sample i, b the share of all learners' multiply-adds that a sample runs (stage 3; the
    paper prints it without the sign)."""

    units = "share"
    couples = "batch"

    def forward(
        self, student: Mapping[str, Tensor], teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any
    ) -> Tensor:
        share_B, there_B = self.shares(student, mask), present(batch, mask)
        apart_BB = (share_B[:, None] - share_B[None]).abs() * there_B
        return -apart_BB.sum(1) * there_B / there_B.sum().clamp_min(1)
