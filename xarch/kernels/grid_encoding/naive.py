"""Products of grids corner by corner: the reference for the other backends. Legend: see the package."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from xarch.kernels.dispatch import register


@register("grid_encode", "naive", priority=0)
def grid_encode_naive(u_N3: Tensor, groups: Sequence[Sequence[tuple[Tensor, tuple[int, ...]]]]) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.grid_encode`."""
    parts = []
    for group in groups:
        value = torch.ones(len(u_N3), group[0][0].shape[-1], dtype=u_N3.dtype, device=u_N3.device)
        for table, axes in group:
            value = value * _interpolate(u_N3, table, axes)
        parts.append(value)
    return torch.cat(parts, dim=-1)


def _interpolate(u_N3: Tensor, table: Tensor, axes: tuple[int, ...]) -> Tensor:
    position = [u_N3[:, a].clamp(0, 1) * (size - 1) for a, size in zip(axes, table.shape, strict=False)]
    low = [p.detach().floor().clamp_max(size - 2).long() for p, size in zip(position, table.shape, strict=False)]
    value = torch.zeros(len(u_N3), table.shape[-1], dtype=u_N3.dtype, device=u_N3.device)
    for bits in product((0, 1), repeat=len(axes)):
        weight = torch.ones_like(u_N3[:, 0])
        for p, i, bit in zip(position, low, bits, strict=True):
            weight = weight * (p - i if bit else 1 - (p - i))
        value = value + weight[:, None] * table[tuple(i + bit for i, bit in zip(low, bits, strict=True))]
    return value
