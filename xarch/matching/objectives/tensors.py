"""Distances between hidden states of equal width.

Legend: B batch, L tokens (or positions), D width.
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


class HiddenDistance(Objective):
    """Base: computes in float32, per-sample mean over positions, and logs the relative error."""

    accepts = frozenset({("BLD", "BLD"), ("BLHE", "BLHE"), ("BLKE", "BLKE")})

    def __init__(self, student: Tap, teacher: Tap | None, options: Mapping[str, Any]) -> None:
        super().__init__(student, teacher, options)
        self._error: Tensor | None = None

    @abstractmethod
    def distance(self, error_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
        """Distance per position [B, L]."""

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch, **aux: Any) -> Tensor:
        teacher_BLD = teacher.float().flatten(2)
        error_BLD = student.float().flatten(2) - teacher_BLD
        with torch.no_grad():
            self._error = error_BLD.norm(dim=-1).sum() / teacher_BLD.norm(dim=-1).sum().clamp_min(1e-12)
        return self.distance(error_BLD, teacher_BLD).flatten(1).mean(1)

    def monitor(self) -> dict[str, float]:
        return {} if self._error is None else {"relative_error": float(self._error)}


class L2(HiddenDistance):
    """Euclidean distance per position, not squared (MOHAWK, arXiv 2408.10189, stage 2)."""

    units = "norm/position"

    def distance(self, error_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
        # The gradient of a norm at zero is undefined; the floor only matters once student and teacher are equal.
        return (error_BLD.square().sum(-1) + 1e-12).sqrt()


class RelativeL2(HiddenDistance):
    """Euclidean distance per position over the teacher's mean norm in the batch, so that layers weigh alike."""

    units = "fraction of the teacher's norm"

    def distance(self, error_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
        scale = teacher_BLD.norm(dim=-1).mean(1, keepdim=True).clamp_min(1e-12)
        return (error_BLD.square().sum(-1) + 1e-12).sqrt() / scale


class MSE(HiddenDistance):
    """Mean squared error over positions and width."""

    units = "squared value"

    def distance(self, error_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
        return error_BLD.square().mean(-1)
