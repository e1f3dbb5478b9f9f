"""Attention-based feature distillation.

Legend: B samples, S and T places of student and teacher, E width of keys and queries.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import Batch, MatchContext, Options
from xarch.matching.objectives.dense import FAINTEST, features
from xarch_objectives.grids import placed, same_places
from xarch_objectives.joined import JoinedObjective


class AFDOptions(Options):
    """Options of ``afd``."""

    width: int = Field(128, ge=1, le=1 << 14, description="features of keys and queries")


class AFD(JoinedObjective):
    """Σ_ts α_ts ‖A(t) − A(s)‖ over all places t of the teacher and s of the student, with A the mean over channels of a
    map's squares, of norm 1, and α_t· the softmax of q_t · k_s / √E over the student's places, of queries and keys
    learned from pooled maps and places (Ji, Heo and Park, arXiv 2102.02973). Train it: ``trains: {objectives: {}}``."""

    Options = AFDOptions
    units = "norm"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        wide = options.width
        self.keys = nn.ModuleList(nn.Linear(features(tap) or 1, wide) for tap in self.own)
        self.queries = nn.ModuleList(nn.Linear(features(tap) or 1, wide) for tap in self.other)
        self.place_SE = nn.Parameter(torch.randn(len(self.own), wide) / math.sqrt(wide))
        self.place_TE = nn.Parameter(torch.randn(len(self.other), wide) / math.sqrt(wide))

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        own = [placed(v, t) for v, t in zip(student.values(), self.own, strict=True)]
        other = [placed(v, t) for v, t in zip(teacher.values(), self.other, strict=True)]
        k_BSE = torch.stack([net(x.flatten(2).mean(2)) for net, x in zip(self.keys, own, strict=True)], 1)
        q_BTE = torch.stack([net(x.flatten(2).mean(2)) for net, x in zip(self.queries, other, strict=True)], 1)
        scores = q_BTE @ k_BSE.transpose(1, 2) + self.place_TE @ self.place_SE.T
        share_BTS = (scores / math.sqrt(self.options.width)).softmax(-1)
        apart = [[self._apart(s, t) for s in own] for t in other]
        apart_BTS = torch.stack([torch.stack(row, 1) for row in apart], 1)
        loss_B = (share_BTS * apart_BTS).sum((1, 2))
        return loss_B if mask is None else loss_B * mask

    def _apart(self, own: Tensor, other: Tensor) -> Tensor:
        a_BN, b_BN = (_energy(x) for x in same_places(own, other, self.context.match))
        return ((a_BN - b_BN).square().sum(1) + FAINTEST).sqrt()


def _energy(value: Tensor) -> Tensor:
    return F.normalize(value.square().mean(1).flatten(1), dim=1, eps=FAINTEST)
