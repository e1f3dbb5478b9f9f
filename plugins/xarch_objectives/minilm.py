"""Relations between positions, as MiniLM matches them.

Legend: B samples, N positions, R relation heads, E width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Batch, MatchContext, Options, Tap, divergence
from xarch.matching.objectives.dense import dense_form, spread, wide
from xarch_objectives.grids import PlacesObjective, placed, same_places


class MiniLMOptions(Options):
    """Options of ``minilm``."""

    heads: int = Field(48, ge=1, le=1 << 12, description="relation heads, at most; a divisor of both widths")
    causal: bool = Field(False, description="a position is related to earlier ones only")


class MiniLM(PlacesObjective):
    """mean over heads and positions of KL(A(t) ‖ A(s)) with A = softmax(x xᵀ / √E) over the positions, for queries,
    keys or values x (one match each), whose width is split anew into as many heads on both sides (Wang et al., arXiv
    2002.10957, and arXiv 2012.15828 for the heads). Widths may differ; positions are averaged to the smaller grid."""

    Options = MiniLMOptions
    units = "nats/position"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        shared = math.gcd(*(_width(tap) for tap in (self.student_tap, self.teacher_tap)))
        self.heads = max(n for n in range(1, min(shared, options.heads) + 1) if shared % n == 0)

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        own = dense_form(student).layout
        return layout == own[0] or (layout == own[:2] and own[1:2] in ("L", "T"))

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        sides = _placed(student, self.student_tap), _placed(teacher, self.teacher_tap)
        own, other = (x.flatten(2).transpose(1, 2) for x in same_places(*sides, self.context.match))
        counted_BN = spread(mask, own[..., 0].detach())
        log_q, log_p = (self._relations(x, counted_BN) for x in (own, other))
        each_BN = divergence(log_p, log_q).mean(1) * counted_BN
        whole = counted_BN.sum(1) if mask is not None and mask.ndim > 1 else each_BN.new_tensor(each_BN.shape[1])
        return each_BN.sum(1) / whole.clamp_min(1) * (counted_BN.sum(1) > 0)

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        counted = super().weight(batch, target, mask=mask)
        return counted if mask is None or mask.ndim == 1 else (counted > 0).float()

    def _relations(self, value_BND: Tensor, counted_BN: Tensor) -> Tensor:
        """Return log A [B, R, N, N]."""
        heads_BRNE = value_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = heads_BRNE @ heads_BRNE.transpose(2, 3) / math.sqrt(heads_BRNE.shape[-1])
        hidden = (counted_BN == 0)[:, None, None, :]
        if self.options.causal:
            hidden = hidden | torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        return F.log_softmax(scores.masked_fill(hidden, -1e30), -1)


def _width(tap: Tap) -> int:
    sizes = [tap.shape.get(letter, 1) for letter in (tap.layout[2:] if _headed(tap) else tap.layout[1:])]
    return math.prod(sizes) if _headed(tap) else tap.shape.get("C", tap.shape.get(tap.layout[-1], 1))


def _headed(tap: Tap) -> bool:
    """Return whether positions come first and heads follow, "BLHE"."""
    return len(tap.layout) == 4 and tap.layout[1] in "LT"


def _placed(value: Tensor, tap: Tap) -> Tensor:
    return wide(value).flatten(2).transpose(1, 2) if _headed(tap) else placed(value, tap)
