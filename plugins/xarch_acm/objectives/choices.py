"""What objectives on the choices of all gates share.

Legend: B samples, L positions, K choices of a gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, Objective, Tap


class ChoiceObjective(Objective):
    """Base: joined choices [B, L, K] of all gates; their taps tell ``cost``, ``gate``, ``least``,
    ``learners`` and ``budget``."""

    accepts = frozenset({("BLK", "none")})
    joins = True
    student_tap: Mapping[str, Tap]

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout in ("B", "BL")

    def shares(self, choices: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        """Return the share of all learners' multiply-adds that learners and gates take for every sample [B]."""
        ran: Any = 0.0
        whole: Any = 0.0
        for name, choice_BLK in choices.items():
            facts = self.student_tap[name].info
            count_K = torch.arange(choice_BLK.shape[-1], device=choice_BLK.device) + facts["least"]
            learners_BL, counted_BL = (choice_BLK * count_K).sum(-1), positions(choice_BLK, mask)
            ran = ran + ((facts["cost"] * learners_BL + facts["gate"]) * counted_BL).sum(1)
            whole = whole + facts["cost"] * facts["learners"] * counted_BL.sum(1)
        return ran / whole.clamp_min(1e-30)

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return present(batch, mask)


def present(batch: Batch, mask: Tensor | None) -> Tensor:
    """Return which samples have a position that counts [B]; ones without a mask."""
    if mask is None:
        return torch.ones(len(batch), device=batch.device)
    return (mask.reshape(len(batch), -1) != 0).any(1).float()


def positions(choice_BLK: Tensor, mask: Tensor | None) -> Tensor:
    """Return which positions count [B, L]; ones without a mask."""
    ones_BL = torch.ones_like(choice_BLK[..., 0])
    if mask is None:
        return ones_BL
    return ones_BL * (mask if mask.ndim == 2 else mask[:, None]).to(ones_BL)
