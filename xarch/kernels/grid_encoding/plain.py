"""Products of grids in plain PyTorch, and the operators that exporters record. Legend: see the package, K corners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.graph_forms import graph_form
from xarch.kernels.precision import tracing
from xarch.kernels.weighted_rows import weighted_rows


@register("grid_encode", "torch", priority=10)
def grid_encode_plain(u_N3: Tensor, groups: Sequence[Sequence[tuple[Tensor, tuple[int, ...]]]]) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.grid_encode`."""
    parts = []
    for group in groups:
        value = _interpolate(u_N3, *group[0])
        for factor in group[1:]:
            value = value * _interpolate(u_N3, *factor)
        parts.append(value)
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def _interpolate(u_N3: Tensor, table: Tensor, axes: tuple[int, ...]) -> Tensor:
    if tracing() and graph_form("grid") == "grid_sample" and len(axes) < 3:
        return _grid_sample(u_N3, table, axes)
    index_NK = torch.zeros(1, 1, dtype=torch.long, device=u_N3.device)
    weight_NK = torch.ones(1, 1, dtype=u_N3.dtype, device=u_N3.device)
    for axis, size in zip(axes, table.shape[:-1], strict=True):
        position_N = u_N3[:, axis].clamp(0, 1) * (size - 1)
        low_N = position_N.detach().floor().clamp_max(size - 2)
        fraction_N = position_N - low_N
        pair_N2 = torch.stack((low_N, low_N + 1), dim=-1).long()
        index_NK = (index_NK[:, :, None] * size + pair_N2[:, None]).flatten(1)
        weight_NK = (weight_NK[:, :, None] * torch.stack((1 - fraction_N, fraction_N), -1)[:, None]).flatten(1)
    return weighted_rows(table.flatten(0, -2), index_NK, weight_NK)


def _grid_sample(u_N3: Tensor, table: Tensor, axes: tuple[int, ...]) -> Tensor:
    """One or two axes as a 4-D GridSample; a line is an image one pixel wide."""
    rows_N = 2 * u_N3[:, axes[0]] - 1
    columns_N = 2 * u_N3[:, axes[1]] - 1 if len(axes) == 2 else torch.zeros_like(rows_N)
    image = table.permute(2, 0, 1) if len(axes) == 2 else table.T[:, :, None]
    place = torch.stack((columns_N, rows_N), dim=-1)[None, :, None]
    picked_1CN1 = F.grid_sample(image[None], place, mode="bilinear", padding_mode="border", align_corners=True)
    return picked_1CN1[0, :, :, 0].T
