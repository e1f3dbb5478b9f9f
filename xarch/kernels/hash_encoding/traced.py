"""All levels of a hash grid at once, for exporters: constants per level instead of operators per level.

Legend: N points, L levels, 8 corners, F features.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from xarch.kernels.hash_encoding.config import PRIMES, HashConfig, level_table
from xarch.kernels.hash_encoding.corners import BELOW_ONE, weights


def hash_encode_traced(u_N3: Tensor, table_EF: Tensor, config: HashConfig) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.hash_encode`."""
    levels = level_table(config)

    def constant(values: list[float] | list[int] | list[bool], *shape: int) -> Tensor:
        return torch.tensor(values, device=u_N3.device).view(*shape)

    scale_L1 = constant([level.scale for level in levels], -1, 1).to(u_N3.dtype)
    shift_L1 = constant([level.shift for level in levels], -1, 1).to(u_N3.dtype)
    position_NL3 = u_N3.clamp(0.0, BELOW_ONE)[:, None] * scale_L1 + shift_L1
    low_NL3 = position_NL3.floor()
    cell_NL3 = low_NL3.long()
    dense_L1 = constant([level.dense for level in levels], -1, 1)
    size_L1, offset_L1 = (constant([getattr(level, n) for level in levels], -1, 1) for n in ("size", "offset"))
    counted, hashed = [], []
    for axis, prime in enumerate(PRIMES):
        stride_L1 = constant([level.stride**axis for level in levels], -1, 1)
        corners_NL2 = torch.stack((cell_NL3[..., axis], cell_NL3[..., axis] + 1), dim=-1)
        counted.append(corners_NL2 * stride_L1)
        hashed.append(corners_NL2 * prime)
    by_count = _corners(counted, operator.add)
    # Coordinates and primes are small enough for 64 bits; the original hashes in 32.
    by_hash = _corners(hashed, operator.xor) & 0xFFFFFFFF
    index_NL8 = torch.where(dense_L1, by_count, by_hash) % size_L1 + offset_L1
    weight_N8 = weights((position_NL3 - low_NL3).flatten(0, 1))
    value_NL8F = table_EF[index_NL8] * weight_N8.view(-1, len(levels), 8)[..., None]
    return value_NL8F.sum(dim=2).flatten(1)


def _corners(axes: list[Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[N, L, 8] from the two values of each axis, x as the lowest bit."""
    x_NL2, y_NL2, z_NL2 = axes
    plane_NL4 = join(y_NL2[..., :, None], x_NL2[..., None, :]).flatten(-2)
    return join(z_NL2[..., :, None], plane_NL4[..., None, :]).flatten(-2)
