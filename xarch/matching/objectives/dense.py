"""Values as positions with features, whatever their layout: what objectives over dense tensors share.

Legend: B samples, P positions (all other axes, flattened), F features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.objective import Objective
from xarch.contracts.tap import Tap

FAINTEST = 1e-12
"""Added where a norm or a sum may be zero."""
CHANNELS = "C"
"""The letter of a feature axis that is not the last one."""


def feature_letter(layout: str) -> str:
    """The axis of a dense layout that holds features: C where there is one ("BCHW"), else the last; "" for "B"."""
    return CHANNELS if CHANNELS in layout[1:] else layout[1:][-1:]


def position_letters(layout: str) -> str:
    """Axes of a dense layout without the samples and the features: "L" of "BLD", "HW" of "BCHW"."""
    return layout[1:].replace(feature_letter(layout), "") if len(layout) > 1 else ""


def features(tap: Tap) -> int | None:
    """How many features a position of a tap has, None where the architecture does not fix it; 1 for a bare number."""
    letter = feature_letter(tap.layout)
    return tap.shape.get(letter) if letter else 1


def wide(value: Tensor) -> Tensor:
    """At least float32: float64 stays."""
    return value if value.dtype == torch.float64 else value.float()


def rows(value: Tensor, layout: str) -> Tensor:
    """A value as [B, P, F], float32; without positions P is 1, without features F is 1."""
    value = wide(value)
    if value.ndim == 1:
        return value[:, None, None]
    value = value.movedim(layout.index(feature_letter(layout)), -1)
    return value.flatten(1, -2) if value.ndim > 2 else value[:, None]


def total(value_BP: Tensor, mask: Tensor | None) -> Tensor:
    """Per sample [B]: the mean over positions, or with a mask the sum over those it counts.

    A mask has the samples and the first position axes; a position of it holds the mean of what it stands for.
    """
    if mask is None:
        return value_BP.mean(1)
    counted_BM = wide(mask).flatten(1) if mask.ndim > 1 else wide(mask)[:, None]
    value_BM = value_BP.unflatten(1, (counted_BM.shape[1], -1)).mean(2)
    # What a mask leaves out may be anything, infinities of padding too.
    return torch.where(counted_BM != 0, value_BM * counted_BM, 0.0).sum(1)


def counted(batch: Batch, mask: Tensor | None) -> Tensor:
    """Per sample [B]: what :func:`total` counted."""
    if mask is None:
        return torch.ones(len(batch), device=batch.device)
    return wide(mask).flatten(1).sum(1) if mask.ndim > 1 else wide(mask)


def spread(mask: Tensor | None, value_BP: Tensor) -> Tensor:
    """A mask over all positions [B, P]; ones without a mask."""
    if mask is None:
        return torch.ones_like(value_BP)
    mask_BM = wide(mask).flatten(1) if mask.ndim > 1 else wide(mask)[:, None]
    return mask_BM[:, :, None].expand(-1, -1, value_BP.shape[1] // mask_BM.shape[1]).flatten(1)


class DenseObjective(Objective):
    """Base: compares a student's value with one of the same rank, position by position.

    A subclass writes :meth:`positions`. Computed in float32. Without a mask a sample's loss is the mean over its
    positions and counts once; with one it is the sum over the counted positions, and counts as many.
    """

    accepts = frozenset({("dense", "dense")})

    _figures: Mapping[str, Tensor] | None = None

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        return student.dense and teacher is not None and teacher.dense

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        if teacher is None:
            return None
        if len(student.layout) != len(teacher.layout):
            return f"{student.layout} and {teacher.layout} have different numbers of axes"
        both = _axes(student), _axes(teacher)
        wrong = [f"{a}: {m} != {n}" for (a, m), (_, n) in zip(*both, strict=True) if None not in (m, n) and m != n]
        return "; ".join(wrong) or None

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return student.dense and (student.layout[0] + position_letters(student.layout)).startswith(layout)

    @abstractmethod
    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        """Loss of every position [B, P]; ``mask_BP`` only for scales that are taken over positions."""

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        student_BPF, teacher_BPF = rows(student, self.student_tap.layout), self.right(teacher)
        if student_BPF.shape[:2] != teacher_BPF.shape[:2]:
            raise ValueError(
                f"match {self.context.match!r}: the student has {student_BPF.shape[1]} positions in "
                f"{student_BPF.shape[0]} samples, the right side {teacher_BPF.shape[1]} in {teacher_BPF.shape[0]}"
            )
        mask_BP = spread(mask, student_BPF[..., 0].detach())
        with torch.no_grad():
            self._figures = self.figures(student_BPF, teacher_BPF, mask_BP)
        return total(self.positions(student_BPF, teacher_BPF, mask_BP), mask)

    def right(self, teacher: Any) -> Tensor:
        """The right side as [B, P, F]."""
        return rows(teacher, self.teacher_tap.layout)

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return counted(batch, mask)

    def figures(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
        """Figures to log: by default the norm of the difference over that of the right side."""
        error = ((student_BPF - teacher_BPF).norm(dim=-1) * mask_BP).sum()
        return {"relative_error": error / (teacher_BPF.norm(dim=-1) * mask_BP).sum().clamp_min(FAINTEST)}

    def monitor(self) -> dict[str, float]:
        return {name: float(value) for name, value in (self._figures or {}).items()}


def _axes(tap: Tap) -> list[tuple[str, int | None]]:
    """(letter, size) of the axes but the first: positions, then features."""
    letters = position_letters(tap.layout) + feature_letter(tap.layout)
    return [(letter, tap.shape.get(letter)) for letter in letters]
