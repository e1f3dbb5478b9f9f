"""Knowledge review.

Legend: B samples, C channels, H and W the grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import Batch, MatchContext, Options, PlanError
from xarch.matching.objectives.dense import features
from xarch_objectives.grids import placed
from xarch_objectives.joined import JoinedObjective

LEVELS = (4, 2, 1)
"""Sides of the grids at which maps are compared besides their own."""


class ReviewKDOptions(Options):
    """Options of ``reviewkd``."""

    width: int = Field(256, ge=1, le=1 << 14, description="channels in which stages are fused (512 in the paper)")


class ReviewKD(JoinedObjective):
    """Σ over stages of HCL(conv(fused), t), where from late to early a student's map is fused with the upsampled fusion
    of the later ones by two learned attention maps, and HCL is the mean square at the maps' own grid and at 4, 2 and 1
    a side with weights ½, ¼, ⅛, over their sum (Chen et al., arXiv 2104.09044). Train it: ``trains: {objectives:
    {}}``."""

    Options = ReviewKDOptions
    units = "squared value"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        if len(self.own) != len(self.other):
            raise PlanError(f"matches.{context.match}: {len(self.own)} student taps against {len(self.other)}")
        widths = [(features(a) or 1, features(b) or 1) for a, b in zip(self.own, self.other, strict=True)]
        mid = options.width
        self.enter = nn.ModuleList(_normed(a, mid, 1) for a, _ in widths)
        self.leave = nn.ModuleList(_normed(mid, b, 3) for _, b in widths)
        self.attend = nn.ModuleList(nn.Conv2d(2 * mid, 2, 1) for _ in widths[:-1])

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        own = [placed(v, t) for v, t in zip(student.values(), self.own, strict=True)]
        other = [placed(v, t) for v, t in zip(teacher.values(), self.other, strict=True)]
        later, total_B = None, own[0].new_zeros(len(batch))
        for at in reversed(range(len(own))):
            x = self.enter[at](own[at])
            if later is not None:
                later = F.interpolate(later, x.shape[2:])
                z = self.attend[at](torch.cat([x, later], 1)).sigmoid()
                x = x * z[:, :1] + later * z[:, 1:]
            later = x
            total_B = total_B + _hcl(F.interpolate(self.leave[at](x), other[at].shape[2:]), other[at])
        return total_B if mask is None else total_B * mask


def _normed(own: int, width: int, side: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(own, width, side, padding=side // 2, bias=False), nn.BatchNorm2d(width))


def _hcl(made: Tensor, wanted: Tensor) -> Tensor:
    loss, whole, share = (made - wanted).square().mean((1, 2, 3)), 1.0, 1.0
    for side in LEVELS:
        if side < min(made.shape[2:]):
            share /= 2
            apart = F.adaptive_avg_pool2d(made, side) - F.adaptive_avg_pool2d(wanted, side)
            loss, whole = loss + share * apart.square().mean((1, 2, 3)), whole + share
    return loss / whole
