"""Distances between fields, with points and samples weighted by their visibility in the teacher.

Source: PVD, arXiv 2211.15977, section 3.3.

Legend: N points, R rays, K samples per ray, C colour.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Objective, Options, Tap

OPAQUE = 0.5
"""Minimum opacity of a ray for selecting its samples of largest weight."""


class SampleOptions(Options):
    """Options of losses over the samples of a ray, with ``aux: {weight: samples.weight}``."""

    keep: float | None = Field(None, gt=0, le=1, description="share of a ray's samples to use, those of largest weight")
    uniform: float = Field(0.15, ge=0, le=1, description="additional share of all samples, evenly spaced")


class FieldMSEOptions(SampleOptions):
    """Options of ``field-mse``."""

    floor: float = Field(0.02, ge=0, description="added to the opacity or weight, so that empty space counts too")


class LogDensityOptions(SampleOptions):
    """Options of ``log-density``."""

    low: float | None = Field(None, description="log-density of empty space; default the teacher's, else -2")
    high: float = Field(7.0, description="log-density from which a point is opaque")


class FieldObjective(Objective):
    """Base of losses per point or ray; a mask selects points or rays."""

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return student.dense and layout == student.layout[0]

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        loss = self.loss(_wide(student), _wide(teacher), batch, **aux)
        return loss if mask is None else loss * mask

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        return super().weight(batch) if mask is None else mask.float()

    @abstractmethod
    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, **aux: Tensor) -> Tensor:
        """Return the loss of every point or ray."""

    def kept(self, weight_RK: Tensor, batch: Batch) -> Tensor:
        """Return a mask [R, K], 1 for the samples of each ray to use."""
        if self.options.keep is None:
            return torch.ones_like(weight_RK)
        place_R = batch.get("jitter")
        place_R = torch.full_like(weight_RK[:, 0], 0.5) if place_R is None else place_R
        return kept_samples(weight_RK, place_R, self.options.keep, self.options.uniform).to(weight_RK)


class FieldMSE(FieldObjective):
    """Mean squared error weighted by the teacher's visibility; without weights it equals `mse`.

    With ``aux: {opacity: points.opacity}`` a point has weight ``opacity + floor``, so that the colour of empty space
    hardly matters. With ``aux: {weight: samples.weight}`` the samples of a ray are weighted.
    """

    Options = FieldMSEOptions
    accepts = frozenset((layout, layout) for layout in ("N", "NC", "R", "RC", "RK", "RKC"))
    units = "square"
    aux = frozenset({"weight", "opacity"})

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, **aux: Tensor) -> Tensor:
        error = (student - teacher).square()
        if "weight" in aux:
            error = error.mean(dim=-1) if error.ndim == 3 else error
            share = aux["weight"] + self.options.floor / error.shape[1]
            return (self.kept(aux["weight"], batch) * share * error).sum(dim=1)
        loss = error.flatten(1).mean(dim=1) if error.ndim > 1 else error
        return loss * (aux["opacity"] + self.options.floor) if "opacity" in aux else loss


class LogDensity(FieldObjective):
    """Squared one-sided residual of raw log-densities, averaged over a ray's samples.

    Between the bounds, the student has to match. At the lower bound it only has to be at or below it (both are empty),
    at the upper bound at or above it (both are opaque). The student is never clipped: a clip has no gradient outside
    its bounds, and a student stuck below would never recover.
    """

    Options = LogDensityOptions
    accepts = frozenset({("N", "N"), ("RK", "RK")})
    units = "square of log-density"
    aux = frozenset({"weight"})

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, **aux: Tensor) -> Tensor:
        low, high = self.options.low, self.options.high
        low = self.teacher_tap.info.get("empty", -2.0) if low is None else low
        loss = one_sided(student, teacher, low, high).square()
        if "weight" in aux:
            kept_RK = self.kept(aux["weight"], batch)
            return (kept_RK * loss).sum(dim=1) / kept_RK.sum(dim=1).clamp_min(1)
        return loss if loss.ndim == 1 else loss.mean(dim=1)


def _wide(value: Tensor) -> Tensor:
    """Cast to float32 or wider."""
    return value if value.dtype == torch.float64 else value.float()


def one_sided(student: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
    """Return student - clip(teacher), zero where both lie at or beyond the same bound."""
    target = teacher.clamp(low, high)
    residual = student - target
    residual = torch.where(target <= low, residual.clamp_min(0.0), residual)
    return torch.where(target >= high, residual.clamp_max(0.0), residual)


def kept_samples(weight_RK: Tensor, place_R: Tensor, keep: float, uniform: float) -> Tensor:
    """Select the samples of each ray to use, bool [R, K] (the point level of PVD-AL, arXiv 2304.04012).

    Args:
        weight_RK: share of each sample in its ray's colour.
        place_R: a random number per ray in [0, 1) that positions the uniform samples.
        keep: share of a ray's samples, those of largest weight, used where the ray is at least half opaque.
        uniform: share of all samples, evenly spaced, that is always used; without it nothing keeps empty space empty.
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
