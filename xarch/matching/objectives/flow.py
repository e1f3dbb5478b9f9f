"""Flow between places of a model: correlation of the features of neighbouring places (joined).

Legend: B samples, P positions, F and G features of two places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.objective import MatchContext, Objective
from xarch.contracts.tap import Tap
from xarch.errors import PlanError
from xarch.matching.objectives.dense import counted, features, rows


class FSP(Objective):
    """Σ over neighbouring places of mean ‖G_s − G_t‖², with G = Aᵀ B / P of their values A [P, F] and B [P, G] (Yim et
    al., "A gift from knowledge distillation", CVPR 2017).

    Takes two or more student taps (``join: true``) and as many on the right, in the same order and of the same widths.
    The two places of a flow have equal positions; a mask of samples [B] is respected.
    """

    accepts = frozenset({("dense", "dense")})
    units = "squared value"
    joins = True

    def __init__(
        self, student: Mapping[str, Tap], teacher: Mapping[str, Tap] | None, options: Any, context: MatchContext
    ) -> None:
        super().__init__(student, teacher, options, context)
        if not isinstance(student, Mapping) or not isinstance(teacher, Mapping) or len(student) < 2:
            raise PlanError(
                f"matches.{context.match}: fsp compares the flow between two or more taps on both sides",
                "write student: [TAP, TAP], join: true, teacher: same",
            )
        self.layouts = [t.layout for t in student.values()], [t.layout for t in teacher.values()]
        if len(student) != len(teacher):
            raise PlanError(f"matches.{context.match}: {len(student)} student taps against {len(teacher)} on the right")
        for own, other in zip(student.values(), teacher.values(), strict=True):
            if None not in (features(own), features(other)) and features(own) != features(other):
                raise PlanError(
                    f"matches.{context.match}: {own.name} has {features(own)} features, {other.name} {features(other)}",
                    "choose taps of equal width",
                )

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        return student.dense and teacher is not None and teacher.dense

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return None  # the two places of one side may differ; both sides are compared when it is built

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return student.dense and layout == student.layout[0]

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        own = self._flows(list(student.values()), self.layouts[0])
        other = self._flows(list(teacher.values()), self.layouts[1])
        loss_B = torch.stack([(g - h).square().mean((1, 2)) for g, h in zip(own, other, strict=True)]).sum(0)
        return loss_B if mask is None else loss_B * mask

    def _flows(self, values: Sequence[Tensor], layouts: Sequence[str]) -> list[Tensor]:
        """Return the flow matrices [B, F, G] of every pair of neighbours."""
        flat = [rows(value, layout) for value, layout in zip(values, layouts, strict=True)]
        for a, b in pairwise(flat):
            if a.shape[1] != b.shape[1]:
                raise ValueError(
                    f"match {self.context.match!r}: two neighbouring taps have {a.shape[1]} and {b.shape[1]} "
                    "positions; a flow needs places of equal size"
                )
        return [a.transpose(1, 2) @ b / a.shape[1] for a, b in pairwise(flat)]

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return counted(batch, mask)
