"""Rows and weights of the eight corners around a point, level by level, in 64-bit integers.

Coordinates stay below 2¹³ and the primes below 2³², so products never overflow and their low 32 bits are those of the
unsigned arithmetic of the original. Legend: N points, 8 corners.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.hash_encoding.config import PRIMES, Level

BELOW_ONE = 1 - 2.0**-24


def cells(u_N3: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Lower corner [N, 3] (int64) and fractions [N, 3] of points in [0, 1]³, clamped into it."""
    position_N3 = u_N3.clamp(0.0, BELOW_ONE) * level.scale + level.shift
    floor_N3 = position_N3.floor()
    return floor_N3.long(), position_N3 - floor_N3


def rows(cell_N3: Tensor, level: Level) -> Tensor:
    """Rows [N, 8] of the table, corners in binary order with x as the lowest bit."""
    factors = (1, level.stride, level.stride**2) if level.dense else PRIMES
    axes = [torch.stack((cell_N3[:, a] * f, (cell_N3[:, a] + 1) * f), dim=-1) for a, f in enumerate(factors)]
    x_N112, y_N121, z_N211 = axes[0][:, None, None, :], axes[1][:, None, :, None], axes[2][:, :, None, None]
    if level.dense:
        # Where the stride has no room for the last corner (tiny-cuda-nn), rows wrap around within the level.
        index = (x_N112 + y_N121 + z_N211) % level.size
    elif level.size & (level.size - 1) == 0:
        index = (x_N112 ^ y_N121 ^ z_N211) & (level.size - 1)
    else:
        index = ((x_N112 ^ y_N121 ^ z_N211) & 0xFFFFFFFF) % level.size
    return index.reshape(-1, 8) + level.offset


def weights(fraction_N3: Tensor) -> Tensor:
    """Trilinear weights [N, 8] in the order of :func:`rows`."""
    x, y, z = (torch.stack((1 - fraction_N3[:, a], fraction_N3[:, a]), dim=-1) for a in range(3))
    return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).reshape(-1, 8)
