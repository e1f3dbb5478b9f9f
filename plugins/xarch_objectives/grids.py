"""Common code of objectives on values with places: maps, or tokens in a row or on a grid.

Legend: B samples, F features, N places.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from xarch import Batch, Tap
from xarch.matching.objectives.dense import PairObjective, dense_form, feature_letter, features, opened, wide

POOLS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
"""Averages over one, two and three axes of places."""


def placed(value: Any, tap: Tap) -> Tensor:
    """Return a value as [B, F, *places] with one to three axes of places; tokens of a grid (``info["grid"]``) without
    their prefix tokens."""
    value = wide(opened(value))
    if value.ndim == 2:
        return value[..., None]
    value = value.movedim(tap.layout.index(feature_letter(tap.layout)), 1)
    grid = tap.info.get("grid")
    if grid and value.ndim == 3:
        value = value[:, :, int(tap.info.get("prefix_tokens", 0)) :].unflatten(2, tuple(grid))
    return value if value.ndim <= 2 + len(POOLS) else value.flatten(2)


def resized(value: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return [B, F, *places] averaged to as many places, at most as many as there are."""
    if tuple(value.shape[2:]) == size:
        return value
    made: Tensor = POOLS[len(size) - 1](value, size if len(size) > 1 else size[0])  # type: ignore[arg-type]
    return made


def same_places(student: Tensor, teacher: Tensor, match: str) -> tuple[Tensor, Tensor]:
    """Return both sides at the smaller number of places along every axis.

    Raises:
        ValueError: they have different numbers of axes.
    """
    if student.ndim != teacher.ndim:
        raise ValueError(
            f"match {match!r}: the student has {student.ndim - 2} axes of places, the right side {teacher.ndim - 2}"
        )
    size = tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return resized(student, size), resized(teacher, size)


def unequal_features(student: Tap, teacher: Tap | None) -> str | None:
    """Return why two sides of any grid cannot be compared feature by feature, or None."""
    own, other = features(dense_form(student)), None if teacher is None else features(dense_form(teacher))
    return f"{own} features != {other}" if own and other and own != other else None


class PlacesObjective(PairObjective):
    """Base of losses of every sample over places, whose features and grids may differ; by default a mask of samples
    [B]."""

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return None

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout == dense_form(student).layout[0]


class GridObjective(PlacesObjective):
    """Base of losses over the places of the smaller grid of both sides, to which the other is averaged."""

    @abstractmethod
    def samples(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of every sample [B] from both sides [B, F, *places]; their features may differ."""

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        sides = placed(student, self.student_tap), placed(teacher, self.teacher_tap)
        loss_B = self.samples(*same_places(*sides, self.context.match))
        return loss_B if mask is None else loss_B * mask
