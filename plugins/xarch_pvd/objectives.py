"""Distances between fields, one number per point or ray (PVD, arXiv 2211.15977, section 3.3).

Legend: N points, R rays, K samples on a ray, C colour, F feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from xarch import Batch, Objective, Tap

OPAQUE = 0.5
"""Opacity of a ray from which its samples of largest weight are worth more than the others."""


class FieldMSE(Objective):
    """Mean square over everything but the first axis.

    Options:
        floor: with ``aux: {opacity: teacher:points.opacity}`` a point counts ``opacity + floor``, so that the colour
            of empty space does not matter; with ``aux: {weight: teacher:samples.weight}`` the samples of a ray do.
        keep, uniform: with such weights, only part of a ray's samples counts, see :func:`kept_samples`.
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
            share = aux["weight"] + floor / error.shape[1]
            return (_kept(aux["weight"], batch, self.options) * share * error).sum(dim=1)
        loss = error.flatten(1).mean(dim=1) if error.ndim > 1 else error
        return loss * (aux["opacity"] + floor) if "opacity" in aux else loss


class LogDensity(Objective):
    """Square of the one-sided residual of raw log-densities, mean over a ray's samples where there are any.

    Between the limits the student has to match. At the lower limit it only has to be at most there (both are empty), at
    the upper at least there (both are opaque). The student is never clipped: a clip has no gradient outside its
    limits, and a student stuck below would never come back.

    Options:
        low, high: limits of the log-density: where the teacher counts as empty (-2, an edited one -4), and 7.
        keep, uniform: with ``aux: {weight: teacher:samples.weight}`` only part of a ray's samples counts, see
            :func:`kept_samples`.
    """

    accepts: ClassVar[frozenset[tuple[str, str]]] = frozenset({("N", "N"), ("RK", "RK")})
    units: ClassVar[str] = "square of log-density"

    def __init__(self, student: Tap, teacher: Tap | None, options: Mapping[str, Any]) -> None:
        super().__init__(student, teacher, options)
        empty = -2.0 if teacher is None else teacher.info.get("empty", -2.0)
        self.low, self.high = float(options.get("low", empty)), float(options.get("high", 7.0))

    def forward(self, student: Any, teacher: Any, batch: Batch, **aux: Any) -> Tensor:
        loss = one_sided(student.float(), teacher.float(), self.low, self.high).square()
        if "weight" in aux:
            kept_RK = _kept(aux["weight"], batch, self.options)
            return (kept_RK * loss).sum(dim=1) / kept_RK.sum(dim=1).clamp_min(1)
        return loss if loss.ndim == 1 else loss.mean(dim=1)


def one_sided(student: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
    """student - clip(teacher), zero where both lie at or beyond the same limit."""
    target = teacher.clamp(low, high)
    residual = student - target
    residual = torch.where(target <= low, residual.clamp_min(0.0), residual)
    return torch.where(target >= high, residual.clamp_max(0.0), residual)


def kept_samples(weight_RK: Tensor, place_R: Tensor, keep: float, uniform: float) -> Tensor:
    """The samples of each ray that count, bool [R, K] (the point level of PVD-AL, arXiv 2304.04012).

    Args:
        weight_RK: share of each sample in its ray's colour.
        place_R: a random number of each ray in [0, 1): which samples are the uniform ones.
        keep: share of a ray's samples, those of largest weight, that count where the ray is at least half opaque.
        uniform: share of all samples that counts anyway, evenly spaced: without it nothing keeps empty space empty.
    """
    rays, samples = weight_RK.shape
    kept_RK = torch.zeros_like(weight_RK, dtype=torch.bool)
    best_RM = weight_RK.topk(max(1, round(keep * samples)), dim=1).indices
    kept_RK.scatter_(1, best_RM, weight_RK.sum(dim=1, keepdim=True).expand(rays, best_RM.shape[1]) >= OPAQUE)
    if uniform > 0:
        step_K = torch.arange(samples, device=weight_RK.device)
        mark_RK = (step_K * uniform + place_R[:, None]).floor()
        kept_RK |= mark_RK != ((step_K - 1) * uniform + place_R[:, None]).floor()
    return kept_RK


def _kept(weight_RK: Tensor, batch: Batch, options: Mapping[str, Any]) -> Tensor:
    if "keep" not in options:
        return torch.ones_like(weight_RK)
    place_R = batch.get("jitter")
    place_R = torch.full_like(weight_RK[:, 0], 0.5) if place_R is None else place_R
    return kept_samples(weight_RK, place_R, float(options["keep"]), float(options.get("uniform", 0.15))).to(weight_RK)
