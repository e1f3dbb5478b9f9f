"""Different choices within a sample.

Legend: B samples, L positions, K choices of a gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import Batch
from xarch_acm.objectives.choices import ChoiceObjective, positions, present


class Entropy(ChoiceObjective):
    """mean_l Σ_k a_k log a_k / log K per sample, a its histogram of choices at gate l: the least, −1, if every choice
    is as frequent (stage 3)."""

    units = "share of the largest entropy"

    def forward(
        self, student: Mapping[str, Tensor], teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any
    ) -> Tensor:
        found = []
        for choice_BLK in student.values():
            counted_BL1 = positions(choice_BLK, mask)[..., None]
            share_BK = (choice_BLK * counted_BL1).sum(1) / counted_BL1.sum(1).clamp_min(1e-30)
            found.append(torch.xlogy(share_BK, share_BK.clamp_min(1e-12)).sum(-1) / math.log(choice_BLK.shape[-1]))
        return torch.stack(found).mean(0) * present(batch, mask)
