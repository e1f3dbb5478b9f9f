"""Common code of objectives on relations between the samples of a batch.

Legend: B samples, P positions, F features, D numbers per sample.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from xarch import Batch, Tap
from xarch.matching.objectives.dense import PairObjective, mean_over, opened, rows, spread


class SampleObjective(PairObjective):
    """Base of losses on whole samples, whose two sides may have any widths and grids: every counted sample has one
    loss. A mask leaves out positions, and samples without any.

    Class attributes:
        flat: read all numbers of a sample instead of their mean over the positions.
    """

    flat: ClassVar[bool] = False

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return None

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return torch.ones(len(batch), device=batch.device)
        return (mask.reshape(len(mask), -1).sum(1) > 0).float()

    def vectors(self, value: Any, tap: Tap, mask: Tensor | None) -> Tensor:
        """Return the numbers of every sample [B, D], zero where it is left out."""
        value_BPF = rows(opened(value), tap.layout)
        if mask is not None and mask.ndim > 1 and value_BPF.shape[1] % mask[0].numel():
            mask = mask.reshape(len(mask), -1).sum(1) > 0  # positions of the student are none of this side
        if not self.flat:
            return mean_over(value_BPF, mask)
        counted_BP1 = spread(mask, value_BPF[..., 0].detach())[..., None]
        return torch.where(counted_BP1 != 0, value_BPF, 0.0).flatten(1)


class RelationObjective(SampleObjective):
    """Base of losses that compare samples with samples: each has the same loss, or its share of it."""

    couples = "batch"

    @abstractmethod
    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        """Return the loss, [] or [B]; samples that are not ``present`` are zero and must not count."""

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        own_BD, other_BD = self.vectors(student, self.student_tap, mask), self.vectors(teacher, self.teacher_tap, mask)
        present_B = self.weight(batch, mask=mask).to(own_BD)
        return self.relation(own_BD, other_BD, present_B) * present_B


def pairs(present_B: Tensor) -> Tensor:
    """Return 1 for every pair of different present samples [B, B]."""
    both_BB = present_B[:, None] * present_B
    return both_BB * (1 - torch.eye(len(present_B), dtype=both_BB.dtype, device=both_BB.device))
