"""Resampling of grids."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resampled(grid: Tensor, shape: torch.Size) -> Tensor:
    """Resample a grid [S, ..., C] to another number of samples per axis, with aligned corners."""
    axes = grid.ndim - 1
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    moved = grid.movedim(-1, 0)[None]
    return F.interpolate(moved, size=tuple(shape[:-1]), mode=mode, align_corners=True)[0].movedim(0, -1)
