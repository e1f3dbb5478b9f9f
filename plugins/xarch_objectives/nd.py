"""Norm and direction.

Legend: B samples, D features, K classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Batch, MatchContext, Options, PlanError, Tap
from xarch.matching.objectives.dense import FAINTEST, features
from xarch_objectives.grids import unequal_features
from xarch_objectives.relations import SampleObjective


class NDOptions(Options):
    """Options of ``nd``."""

    centres: Literal["class", "random"] = Field("class", description="random: fixed directions, the control")


class ND(SampleObjective):
    """1 − ⟨f_s, c_y⟩ / max(‖f_s‖, ‖f_t‖), c_y being the direction of the teacher's mean feature of the label's class:
    it turns f_s to the class and lets it grow up to ‖f_t‖ (Wang et al., arXiv 2305.17007). 0 if and only if f_s points
    to c_y and is at least as long. The mean is that of the samples so far (theirs: of a pass before training); until a
    class has been seen, a sample's own f_t. Takes labels: ``aux: {labels: labels}``."""

    Options = NDOptions
    units = "1 - cosine"
    summed = frozenset({"step_sum", "step_count"})
    step_sum: Tensor
    step_count: Tensor
    all_sum: Tensor
    all_count: Tensor

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        classes, width = context.data.get("classes"), features(self.teacher_tap)
        if not classes or not width:
            raise PlanError(
                f"matches.{context.match}: nd requires data with `classes` and a teacher tap of known width"
            )
        for name in ("step", "all"):
            self.register_buffer(f"{name}_sum", torch.zeros(classes, width))
            self.register_buffer(f"{name}_count", torch.zeros(classes))
        if options.centres == "random":
            self.all_sum, self.all_count = torch.randn(classes, width), torch.ones(classes)

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return unequal_features(student, teacher)

    def forward(  # type: ignore[override]
        self, student: Any, teacher: Any, batch: Batch, *, labels: Tensor, mask: Tensor | None = None, **aux: Any
    ) -> Tensor:
        own_BD, other_BD = self.vectors(student, self.student_tap, mask), self.vectors(teacher, self.teacher_tap, mask)
        present_B = self.weight(batch, mask=mask).to(own_BD)
        label_B = labels.argmax(-1) if labels.ndim > 1 else labels.long()
        if self.training and self.options.centres == "class":
            hot_BK = F.one_hot(label_B, len(self.all_count)).to(other_BD) * present_B[:, None]
            self.step_sum += (hot_BK.T @ other_BD.detach()).to(self.step_sum)
            self.step_count += hot_BK.sum(0).to(self.step_count)
        known_B1 = (self.all_count[label_B] > 0)[:, None]
        centre_BD = F.normalize(
            torch.where(known_B1, self.all_sum[label_B].to(other_BD), other_BD), dim=1, eps=FAINTEST
        )
        longest_B = torch.maximum((own_BD.square().sum(1) + FAINTEST).sqrt(), other_BD.norm(dim=1))
        return (1 - (own_BD * centre_BD).sum(1) / longest_B) * present_B

    def after_step(self) -> None:
        self.all_sum += self.step_sum
        self.all_count += self.step_count
