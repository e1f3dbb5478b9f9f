"""Masked generative distillation.

Legend: B samples, C channels, H and W the grid.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from xarch import MatchContext, Options, Tap
from xarch.matching.objectives.dense import dense_form, features
from xarch_objectives.grids import GridObjective


class MGDOptions(Options):
    """Options of ``mgd``."""

    alpha: float = Field(7e-5, ge=0, description="factor of the summed square")
    masked: float = Field(0.5, ge=0, lt=1, description="share of the places that the student's map loses")


class MGD(GridObjective):
    """α Σ (t − g(m ⊙ r(s)))²: from the student's map, of which random places are zero, two 3x3 convolutions g make the
    teacher's (Yang et al., arXiv 2205.01529). r is a 1x1 convolution where widths differ. Measured without a mask.
    Train it: ``trains: {objectives: {}}``."""

    Options = MGDOptions
    units = "squared value"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        own, other = features(self.student_tap) or 1, features(self.teacher_tap) or 1
        self.align = nn.Conv2d(own, other, 1) if own != other else nn.Identity()
        self.keep = nn.Dropout(options.masked)
        self.generate = nn.Sequential(
            nn.Conv2d(other, other, 3, padding=1), nn.ReLU(), nn.Conv2d(other, other, 3, padding=1)
        )

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        return all(t is not None and _is_map(dense_form(t)) for t in (student, teacher))

    def samples(self, student: Tensor, teacher: Tensor) -> Tensor:
        kept_B1HW = self.keep(student.new_ones(len(student), 1, *student.shape[2:]))
        kept_B1HW = kept_B1HW.bool().to(student)  # dropout scales what it keeps
        made = self.generate(self.align(student) * kept_B1HW)
        return self.options.alpha * (teacher - made).square().sum((1, 2, 3))


def _is_map(tap: Tap) -> bool:
    return len(tap.layout) == 4 or "grid" in tap.info
