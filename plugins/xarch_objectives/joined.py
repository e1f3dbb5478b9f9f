"""Common code of objectives that read several places of both sides together (``join: true``).

Legend: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xarch import Batch, MatchContext, Objective, PlanError, Tap
from xarch.matching.objectives.dense import dense_form


class JoinedObjective(Objective):
    """Base: maps of both sides in order, early to late; a mask of samples [B].

    Raises:
        PlanError: a side is a single tap.
    """

    accepts = frozenset({("dense", "dense")})
    joins = True

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        if not isinstance(student, Mapping) or not isinstance(teacher, Mapping):
            name = type(self).__name__.lower()
            told = 'student: "features.*", teacher: "features.*", join: true'
            raise PlanError(f"matches.{context.match}: {name} reads several taps of both sides", f"write {told}")
        self.own = [dense_form(tap) for tap in student.values()]
        self.other = [dense_form(tap) for tap in teacher.values()]

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        return all(tap is not None and dense_form(tap).dense for tap in (student, teacher))

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return None  # any places may meet; what has to fit is checked when it is built

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout == dense_form(student).layout[0]

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return super().weight(batch, target) if mask is None else mask.float()
