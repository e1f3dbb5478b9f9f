"""The budget of all gates together.

Legend: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from xarch import Batch, Options
from xarch_acm.objectives.choices import ChoiceObjective, present


class BudgetOptions(Options):
    """Options of ``acm-budget``."""

    budget: float | None = Field(None, gt=0, le=1, description="share β of the learners to run; default: the student's")


class Budget(ChoiceObjective):
    """|mean_i b_i − β|, b_i what sample i takes of all learners' multiply-adds (stage 3). ``aux: {budget: …}`` gives β
    for every sample."""

    Options = BudgetOptions
    units = "share"
    couples = "batch"
    _executed = float("nan")

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Any,
        batch: Batch,
        *,
        mask: Tensor | None = None,
        budget: Tensor | None = None,
        **aux: Any,
    ) -> Tensor:
        share_B = self.shares(student, mask)
        there_B = present(batch, mask).to(share_B)
        mean = (share_B * there_B).sum() / there_B.sum().clamp_min(1)
        wanted = self.options.budget or next(iter(self.student_tap.values())).info["budget"]
        if self.options.budget is None and budget is not None:
            wanted = (budget * there_B).sum() / there_B.sum().clamp_min(1)
        if self.monitored:
            self._executed = float(mean.detach())
        return (mean - wanted).abs() * there_B

    def monitor(self) -> dict[str, float]:
        return {"executed": self._executed}
