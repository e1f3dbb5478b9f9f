"""Distances between fields, one number per point or ray (PVD, arXiv 2211.15977, section 3.3).

Legend: N points, R rays, K samples on a ray, C colour, F feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from xarch import Batch, Objective, Tap


class FieldMSE(Objective):
    """Mean square over everything but the first axis.

    Options:
        floor: with ``aux: {opacity: teacher:points.opacity}`` a point counts ``opacity + floor``, so that the colour
            of empty space does not matter; with ``aux: {weight: teacher:samples.weight}`` the samples of a ray do.
    """

    accepts: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        (layout, layout) for layout in ("N", "NC", "NF", "R", "RC", "RK", "RKC")
    )
    units: ClassVar[str] = "square"

    def forward(self, student: Any, teacher: Any, batch: Batch, **aux: Any) -> Tensor:
        error = (student.float() - teacher.float()).square()
        floor = float(self.options.get("floor", 0.02))
        if "weight" in aux:
            error = error.mean(dim=-1) if error.ndim == 3 else error
            return ((aux["weight"] + floor / error.shape[1]) * error).sum(dim=1)
        loss = error.flatten(1).mean(dim=1) if error.ndim > 1 else error
        return loss * (aux["opacity"] + floor) if "opacity" in aux else loss


class LogDensity(Objective):
    """Square of the one-sided residual of raw log-densities, mean over a ray's samples where there are any.

    Between the limits the student has to match. At the lower limit it only has to be at most there (both are empty), at
    the upper at least there (both are opaque). The student is never clipped: a clip has no gradient outside its
    limits, and a student stuck below would never come back.

    Options:
        low, high: limits of the log-density: where the teacher counts as empty (-2, an edited one -4), and 7.
    """

    accepts: ClassVar[frozenset[tuple[str, str]]] = frozenset({("N", "N"), ("RK", "RK")})
    units: ClassVar[str] = "square of log-density"

    def __init__(self, student: Tap, teacher: Tap | None, options: Mapping[str, Any]) -> None:
        super().__init__(student, teacher, options)
        empty = -2.0 if teacher is None else teacher.info.get("empty", -2.0)
        self.low, self.high = float(options.get("low", empty)), float(options.get("high", 7.0))

    def forward(self, student: Any, teacher: Any, batch: Batch, **aux: Any) -> Tensor:
        loss = one_sided(student.float(), teacher.float(), self.low, self.high).square()
        return loss if loss.ndim == 1 else loss.mean(dim=1)


def one_sided(student: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
    """student - clip(teacher), zero where both lie at or beyond the same limit."""
    target = teacher.clamp(low, high)
    residual = student - target
    residual = torch.where(target <= low, residual.clamp_min(0.0), residual)
    return torch.where(target >= high, residual.clamp_max(0.0), residual)
