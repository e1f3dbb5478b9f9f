"""Distances between values of equal width.

Legend: B samples, P positions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch.contracts.options import Options
from xarch.matching.objectives.dense import FAINTEST, DenseObjective


class MSEOptions(Options):
    """Options of ``mse``."""

    normalise: Literal["none", "rms", "unit", "standard"] = Field(
        "none",
        description="both sides at every position: rms: root mean square 1; unit: norm 1; standard: mean 0, variance 1",
    )


class MSE(DenseObjective):
    """Σ_f (s_f − t_f)² / F."""

    Options = MSEOptions
    units = "squared value"

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        how = self.options.normalise
        return (_normalised(student_BPF, how) - _normalised(teacher_BPF, how)).square().mean(-1)

    def figures(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
        how = self.options.normalise
        return super().figures(_normalised(student_BPF, how), _normalised(teacher_BPF, how), mask_BP)


def _normalised(value_BPF: Tensor, how: str) -> Tensor:
    if how == "standard":
        value_BPF = value_BPF - value_BPF.mean(-1, keepdim=True)
    if how in ("rms", "standard"):
        return value_BPF * (value_BPF.square().mean(-1, keepdim=True) + FAINTEST).rsqrt()
    return F.normalize(value_BPF, dim=-1, eps=FAINTEST) if how == "unit" else value_BPF


class L2(DenseObjective):
    """‖s − t‖ at every position, not squared (MOHAWK, arXiv 2408.10189, stage 2)."""

    units = "norm/position"

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        # The gradient of a norm at zero is undefined; the floor only matters if both sides are equal.
        return ((student_BPF - teacher_BPF).square().sum(-1) + FAINTEST).sqrt()


class RelativeL2(L2):
    """‖s − t‖ over the mean of ‖t‖ over the sample's counted positions, so that layers have similar weight."""

    units = "fraction of the right side's norm"

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        norm_B1 = (teacher_BPF.norm(dim=-1) * mask_BP).sum(1, keepdim=True) / mask_BP.sum(1, keepdim=True).clamp_min(1)
        return super().positions(student_BPF, teacher_BPF, mask_BP) / norm_B1.clamp_min(FAINTEST)


class Cosine(DenseObjective):
    """1 − cos(s, t)."""

    units = "1 - cosine"

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student_BPF, teacher_BPF, dim=-1)


class HuberOptions(Options):
    """Options of ``huber``."""

    delta: float = Field(1.0, gt=0, description="absolute error above which the loss is linear")


class Huber(DenseObjective):
    """Mean over features of e²/2 where \\|e\\| < δ, else δ(\\|e\\| − δ/2)."""

    Options = HuberOptions
    units = "squared value"

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        return F.huber_loss(student_BPF, teacher_BPF, reduction="none", delta=self.options.delta).mean(-1)


class SmoothL1Options(Options):
    """Options of ``smooth-l1``."""

    beta: float = Field(1.0, ge=0, description="absolute error below which the loss is quadratic; 0: plain L1")


class SmoothL1(DenseObjective):
    """Mean over features of e²/2β where \\|e\\| < β, else \\|e\\| − β/2."""

    Options = SmoothL1Options
    units = "absolute value"

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        return F.smooth_l1_loss(student_BPF, teacher_BPF, reduction="none", beta=self.options.beta).mean(-1)
