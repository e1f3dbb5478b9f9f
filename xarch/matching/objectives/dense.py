"""Common code of objectives over dense tensors: values of any layout as positions with features.

Legend: B samples, P positions (all other axes, flattened), F features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.objective import MatchContext, Objective
from xarch.contracts.tap import Tap

FAINTEST = 1e-12
"""Added to norms and sums that may be zero."""
CHANNELS = "C"
"""Letter of a feature axis that is not the last axis."""


def feature_letter(layout: str) -> str:
    """Return the feature axis of a dense layout: C if present ("BCHW"), else the last; "" for "B"."""
    return CHANNELS if CHANNELS in layout[1:] else layout[1:][-1:]


def position_letters(layout: str) -> str:
    """Return the axes of a dense layout except samples and features: "L" for "BLD", "HW" for "BCHW"."""
    return layout[1:].replace(feature_letter(layout), "") if len(layout) > 1 else ""


def counts_positions(tap: Tap, layout: str) -> bool:
    """Return whether a mask of this layout selects samples or positions of a dense tap: "B", "BH" or "BHW" for
    "BCHW"."""
    return tap.dense and (tap.layout[0] + position_letters(tap.layout)).startswith(layout)


def features(tap: Tap) -> int | None:
    """Return the number of features per position of a tap, None if the architecture does not fix it; 1 for a scalar."""
    letter = feature_letter(tap.layout)
    return tap.shape.get(letter) if letter else 1


def wide(value: Tensor) -> Tensor:
    """Convert to at least float32; float64 is kept."""
    return value if value.dtype == torch.float64 else value.float()


def rows(value: Tensor, layout: str) -> Tensor:
    """Return a value as [B, P, F], float32; without positions P is 1, without features F is 1."""
    value = wide(value)
    if value.ndim == 1:
        return value[:, None, None]
    axis = layout.index(feature_letter(layout))
    if axis != value.ndim - 1:
        value = value.movedim(axis, -1)
    return value.flatten(1, -2) if value.ndim > 2 else value[:, None]


def total(value_BP: Tensor, mask: Tensor | None) -> Tensor:
    """Return per sample [B] the mean over positions, or with a mask the sum over the counted positions.

    A mask has the sample axis and the first position axes; each of its positions counts the mean of the positions it
    covers.
    """
    if mask is None:
        return value_BP.mean(1)
    counted_BM = wide(mask).flatten(1) if mask.ndim > 1 else wide(mask)[:, None]
    value_BM = value_BP.unflatten(1, (counted_BM.shape[1], -1)).mean(2)
    # Masked-out values may be anything, including infinities in padding.
    return torch.where(counted_BM != 0, value_BM * counted_BM, 0.0).sum(1)


def counted(batch: Batch, mask: Tensor | None) -> Tensor:
    """Return per sample [B] how much :func:`total` counted."""
    if mask is None:
        return torch.ones(len(batch), device=batch.device)
    return wide(mask).flatten(1).sum(1) if mask.ndim > 1 else wide(mask)


def spread(mask: Tensor | None, value_BP: Tensor) -> Tensor:
    """Return a mask over all positions [B, P]; ones without a mask."""
    if mask is None:
        return torch.ones_like(value_BP)
    mask_BM = wide(mask).flatten(1) if mask.ndim > 1 else wide(mask)[:, None]
    return mask_BM[:, :, None].expand(-1, -1, value_BP.shape[1] // mask_BM.shape[1]).flatten(1)


def mean_over(value_BPF: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the counted positions [B, F]; zeros where none counts."""
    if mask is None:
        return value_BPF.mean(1)
    counted_BP1 = spread(mask, value_BPF[..., 0])[..., None]
    # Masked-out values may be anything, including infinities in padding.
    kept_BPF = torch.where(counted_BP1 != 0, value_BPF * counted_BP1, 0.0)
    return kept_BPF.sum(1) / counted_BP1.sum(1).clamp_min(FAINTEST)


def dense_form(tap: Tap) -> Tap:
    """Return the declaration of the tensor that a tap's value can be made into: the tap itself if it is dense; for a
    structured form with ``info["dense"]``, that is the layout of what ``value.full()`` returns."""
    layout = tap.info.get("dense")
    return tap if tap.dense or not layout else Tap(tap.name, tap.kind, str(layout), tap.shape, tap.info)


def opened(value: Any) -> Any:
    """Return a value as declared by :func:`dense_form`."""
    full = None if isinstance(value, Tensor) else getattr(value, "full", None)
    return value if full is None else full()


class PairObjective(Objective):
    """Base class: two dense sides with as many positions, in float32. Without a mask a sample's loss is the mean over
    its positions and counts once; with one it is the sum over the counted positions, and counts that many.

    Structured values with a dense form (``info["dense"]``) are opened: the whole tensor is in memory.
    """

    accepts = frozenset({("dense", "dense")})

    _figures: Mapping[str, Tensor] | None = None

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(_forms(student), _forms(teacher), options, context)

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        return dense_form(student).dense and teacher is not None and dense_form(teacher).dense

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        if teacher is None:
            return None
        student, teacher = dense_form(student), dense_form(teacher)
        if len(student.layout) != len(teacher.layout):
            return f"{student.layout} and {teacher.layout} have different numbers of axes"
        both = _axes(student), _axes(teacher)
        wrong = [f"{a}: {m} != {n}" for (a, m), (_, n) in zip(*both, strict=True) if None not in (m, n) and m != n]
        return "; ".join(wrong) or None

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return counts_positions(dense_form(student), layout)

    def sides(self, student: Any, teacher: Any, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return both sides as [B, P, F], and which positions count [B, P]; keeps the figures to log.

        Raises:
            ValueError: they have different numbers of positions.
        """
        student_BPF, teacher_BPF = rows(opened(student), self.student_tap.layout), self.right(teacher)
        if student_BPF.shape[:2] != teacher_BPF.shape[:2]:
            raise ValueError(
                f"match {self.context.match!r}: the student has {student_BPF.shape[1]} positions in "
                f"{student_BPF.shape[0]} samples, the right side {teacher_BPF.shape[1]} in {teacher_BPF.shape[0]}"
            )
        mask_BP = spread(mask, student_BPF[..., 0].detach())
        if self.monitored:
            with torch.no_grad():
                self._figures = self.figures(student_BPF, teacher_BPF, mask_BP)
        return student_BPF, teacher_BPF, mask_BP

    def right(self, teacher: Any) -> Tensor:
        """Return the right side as [B, P, F]."""
        return rows(opened(teacher), self.teacher_tap.layout)

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return counted(batch, mask)

    def figures(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
        """Return figures to log: by default the norm of the difference over that of the right side."""
        error = ((student_BPF - teacher_BPF).norm(dim=-1) * mask_BP).sum()
        return {"relative_error": error / (teacher_BPF.norm(dim=-1) * mask_BP).sum().clamp_min(FAINTEST)}

    def monitor(self) -> dict[str, float]:
        return {name: float(value) for name, value in (self._figures or {}).items()}


class DenseObjective(PairObjective):
    """Base class: compares two values of the same rank position by position. Subclasses implement :meth:`positions`."""

    @abstractmethod
    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        """Return the loss of every position [B, P]; use ``mask_BP`` only for scales computed over positions."""

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        return total(self.positions(*self.sides(student, teacher, mask)), mask)


def _forms(side: Any) -> Any:
    if isinstance(side, Mapping):
        return {name: dense_form(tap) for name, tap in side.items()}
    return None if side is None else dense_form(side)


def _axes(tap: Tap) -> list[tuple[str, int | None]]:
    """Return (letter, size) of all axes but the first: positions, then features."""
    letters = position_letters(tap.layout) + feature_letter(tap.layout)
    return [(letter, tap.shape.get(letter)) for letter in letters]
