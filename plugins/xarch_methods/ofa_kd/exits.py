"""The exit branches of OFA-KD (Hao et al., arXiv 2310.19444, and its code); they are dropped after the stage."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from xarch import Batch, Connector, MatchContext, Options, PlanError, Tap
from xarch_methods.ofa_kd.conv_exit import ConvExit
from xarch_methods.ofa_kd.token_exit import TokenExit


class OFAExitOptions(Options):
    """Options of ``ofa-exit``."""

    kind: Literal["auto", "conv", "token"] = Field("auto", description="auto: the student's kind, else by the layout")
    stage: int | None = Field(None, ge=1, le=64, description="number of the stage; default: the number in the tap")
    grid: int = Field(7, ge=1, le=512, description="token exits merge patches down to about this many a side")
    heads: int = Field(4, ge=1, le=64, description="attention heads of token exits")


class OFAExit(Connector):
    """``ofa-exit``: one exit [B, K] of a student's stage: deeper the earlier the stage, of the student's own kind.

    Reads ``kind``, ``prefix_tokens``, ``grid``, ``pooled`` and ``last`` in the tap's info, and the width of the
    teacher's classifier in its constants or its tap's info, where a family gives them.
    """

    Options = OFAExitOptions
    accepts = frozenset({"BCHW", "BLD"})

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        info, numbers = student.info, re.findall(r"\d+", student.name)
        own = student.shape.get("C" if student.layout == "BCHW" else "D")
        classes = (teacher.shape.get("K") if teacher is not None else None) or context.data.get("classes")
        if own is None or classes is None:
            raise PlanError(f"matches.{context.match}.through: the width of {student.name} or the classes are unknown")
        last = int(info.get("last", 4))
        after = max(last - (options.stage or (int(numbers[-1]) if numbers else last)), 0)
        width = int(info.get("pooled", own))
        kind = info.get("kind", "conv" if student.layout == "BCHW" else "token")
        kind = kind if options.kind == "auto" else options.kind
        self.classes = int(classes)
        self.net: nn.Module
        if kind == "conv":
            wide = max(width, _classifier_width(teacher, context) or 0)
            self.net = ConvExit(own, wide, self.classes, after)
        else:
            grid = tuple(info.get("grid", ())) or None
            prefix = int(info.get("prefix_tokens", 0)) if student.layout == "BLD" else 0
            self.net = TokenExit(own, width, self.classes, max(after, 1), grid, prefix, options.grid, options.heads)

    @property
    def tap(self) -> Tap:
        return Tap(self.student_tap.name, "logits", "BK", {"K": self.classes}, self.student_tap.info)

    def forward(self, value: Tensor, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        made: Tensor = self.net(value)
        return made


def _classifier_width(teacher: Tap | None, context: MatchContext) -> int | None:
    weight = context.teacher.get("classifier.weight")
    return weight.shape[-1] if weight is not None else teacher.info.get("pooled") if teacher is not None else None
