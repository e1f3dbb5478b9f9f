"""Common code of objectives that compare logits, with or without labels.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch import Batch
from xarch.matching.objectives.dense import DenseObjective, PairObjective, rows, total
from xarch.matching.objectives.labels import IGNORED


def agreement(student_BPK: Tensor, teacher_BPK: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
    """Return the share of counted positions at which both sides find the same class likeliest."""
    same_BP = (student_BPK.argmax(-1) == teacher_BPK.argmax(-1)).to(mask_BP.dtype)
    return {"agreement": (same_BP * mask_BP).sum() / mask_BP.sum().clamp_min(1)}


class LogitObjective(DenseObjective):
    """Base of losses on logits at every position; logs the agreement."""

    units = "nats/position"

    def figures(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
        return agreement(student_BPF, teacher_BPF, mask_BP)


class LabelledObjective(PairObjective):
    """Base of losses on logits that also read labels (``aux: {labels: labels}``): classes in the student's layout
    without its classes, of which -100 gives no loss, or probabilities in its layout, as after mixing. Where the tap's
    info says ``ahead``, a position's label is that many positions later, in the same segment."""

    units = "nats/position"

    def forward(  # type: ignore[override]
        self, student: Any, teacher: Any, batch: Batch, *, labels: Tensor, mask: Tensor | None = None, **aux: Any
    ) -> Tensor:
        student_BPK, teacher_BPK, _ = self.sides(student, teacher, mask)
        label_BPK, known_BP = self.target(_shifted(labels, self.student_tap.info, batch), student_BPK)
        loss_BP = self.labelled(student_BPK, teacher_BPK, label_BPK)
        return total(torch.where(known_BP, loss_BP, 0.0), mask)

    @abstractmethod
    def labelled(self, student_BPK: Tensor, teacher_BPK: Tensor, label_BPK: Tensor) -> Tensor:
        """Return the loss of every position [B, P]; ``label_BPK`` is 1 at the class of the label, by default."""

    def target(self, labels: Tensor, student_BPK: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels as one-hot [B, P, K], of probabilities the largest, and where there is one [B, P]."""
        if labels.ndim == len(self.student_tap.layout):
            labels = rows(labels, self.student_tap.layout).argmax(-1)
        label_BP = labels.long().reshape(student_BPK.shape[:2])
        one_hot = F.one_hot(label_BP.clamp_min(0), student_BPK.shape[-1]).to(student_BPK.dtype)
        return one_hot, label_BP != IGNORED

    def figures(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
        return agreement(student_BPF, teacher_BPF, mask_BP)


def _shifted(labels: Tensor, info: Mapping[str, Any], batch: Batch) -> Tensor:
    """Return the label of every position, -100 where it would be past the end or in another segment."""
    ahead = int(info.get("ahead", 0))
    if not ahead or labels.is_floating_point():
        return labels
    shifted_BL = labels.roll(-ahead, 1)
    shifted_BL[:, -ahead:] = IGNORED
    segments_BL = batch.get(str(info.get("segments", "")))
    if segments_BL is not None:
        same = torch.zeros_like(shifted_BL, dtype=torch.bool)
        same[:, :-ahead] = segments_BL[:, ahead:] == segments_BL[:, :-ahead]
        shifted_BL = torch.where(same, shifted_BL, IGNORED)
    return shifted_BL
