"""Conversion of occupancy grids between files: Morton bit fields, cascades, different boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MERGED_SIDE = 256
"""Largest side of a grid merged from cascades (16 MiB of bool)."""


def morton(side: int) -> Tensor:
    """Return the Morton index of every cell, int64 [side,side,side] in xyz order, lowest bit x."""
    bits = max(1, (side - 1).bit_length())
    line = torch.arange(side)
    spread = sum((((line >> b) & 1) << (3 * b) for b in range(bits)), torch.zeros_like(line))
    return spread[:, None, None] | spread[None, :, None] << 1 | spread[None, None, :] << 2


def unpack_bits(field: Tensor, cascades: int, side: int) -> Tensor:
    """Unpack torch-ngp's bit field, uint8 [C*side^3/8], lowest bit first, Morton order, to bool [C,X,Y,Z]."""
    bits = (field.view(cascades, -1, 1).int() >> torch.arange(8)) & 1
    return bits.view(cascades, -1)[:, morton(side)].to(torch.bool)


def pack_bits(grids: Tensor) -> Tensor:
    """Invert :func:`unpack_bits`."""
    cascades, side = grids.shape[0], grids.shape[1]
    flat = torch.zeros(cascades, side**3, dtype=torch.int64)
    flat[:, morton(side).flatten()] = grids.reshape(cascades, -1).to(torch.int64)
    weights = 1 << torch.arange(8)
    return (flat.view(-1, 8) * weights).sum(1).to(torch.uint8)


def to_morton(grids: Tensor) -> Tensor:
    """Reorder values [C,X,Y,Z] to torch-ngp's order [C, side^3]."""
    flat = torch.empty(grids.shape[0], grids[0].numel(), dtype=grids.dtype)
    flat[:, morton(grids.shape[1]).flatten()] = grids.flatten(1)
    return flat


def any_over(grid: Tensor, box: Sequence[float], other: Sequence[float], shape: Sequence[int]) -> Tensor:
    """Resample to bool of ``shape`` over box ``other``: True where an occupied cell of ``grid`` over ``box`` overlaps.

    Occupied space is never lost; everything outside ``box`` is empty. Boxes are (x0, y0, z0, x1, y1, z1).
    """
    result = grid.to(torch.int32)
    for axis in range(3):
        count, low, high = grid.shape[axis], box[axis], box[axis + 3]
        edges = torch.linspace(other[axis], other[axis + 3], shape[axis] + 1, dtype=torch.float64)
        place = (edges - low) / (high - low) * count
        # Cells that only touch at an edge do not overlap; guard against rounding.
        first = torch.floor(place[:-1] + 1e-6).clamp(0, count).long()
        last = torch.ceil(place[1:] - 1e-6).clamp(0, count).long()
        total = torch.cumsum(result, dim=axis, dtype=torch.int32)
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, 1)), total], dim=axis)
        within = total.index_select(axis, last.maximum(first)) - total.index_select(axis, first)
        result = (within > 0).to(torch.int32)
    return result.to(torch.bool)


def cubic(grid: Tensor) -> Tensor:
    """Resample a grid [X,Y,Z] to bool [H,H,H] over the same box; occupied space is never lost."""
    side = min(max(grid.shape), MERGED_SIDE)
    if tuple(grid.shape) == (side,) * 3:
        return grid
    unit = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    return any_over(grid, unit, unit, (side,) * 3)


def cascade_count(bound: float) -> int:
    return 1 + max(0, math.ceil(math.log2(bound)))


def cascade_box(level: int, bound: float) -> tuple[float, float, float, float, float, float]:
    side = min(2.0**level, bound)
    return (-side, -side, -side, side, side, side)


def merge_cascades(grids: Tensor, bound: float, box: Sequence[float]) -> Tensor:
    """Merge torch-ngp's cascades [C,side,side,side] to bool [H,H,H] over ``box``: occupied in any of them."""
    side = grids.shape[1]
    if grids.shape[0] == 1 and tuple(box) == cascade_box(0, bound):
        return grids[0]
    wanted = min(side << (grids.shape[0] - 1), MERGED_SIDE)
    shape = (wanted, wanted, wanted)
    merged = torch.zeros(shape, dtype=torch.bool)
    for level, grid in enumerate(grids):
        merged |= any_over(grid, cascade_box(level, bound), box, shape)
    return merged


def split_cascades(grid: Tensor, box: Sequence[float], bound: float, side: int) -> Tensor:
    """Split a grid over ``box`` into torch-ngp's cascades, bool [C,side,side,side]."""
    levels = cascade_count(bound)
    return torch.stack([any_over(grid, box, cascade_box(k, bound), (side,) * 3) for k in range(levels)])
