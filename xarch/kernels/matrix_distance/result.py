"""What a matrix comparison returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MatrixDistance(NamedTuple):
    """A tuple, so that it passes through torch transforms and autograd hooks as its tensors."""

    distance_BH: Tensor
    """‖M - P‖_F per sequence and head."""
    teacher_norm_BH: Tensor
    """‖P‖_F per sequence and head, without gradient; distance over norm is comparable across lengths."""
