"""The encoding corner by corner: the reference for the other backends. Legend: see the package."""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.hash_encoding.config import PRIMES, HashConfig, level_table
from xarch.kernels.hash_encoding.corners import BELOW_ONE
from xarch.kernels.precision import island_dtype


@register("hash_encode", "naive", priority=0)
def hash_encode_naive(u_N3: Tensor, table_EF: Tensor, config: HashConfig) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.hash_encode`."""
    dtype = island_dtype(u_N3, table_EF)
    u_N3, table_EF = u_N3.to(dtype), table_EF.to(dtype)
    parts = []
    for level in level_table(config):
        position = u_N3.clamp(0.0, BELOW_ONE) * level.scale + level.shift
        low = position.floor()
        value = u_N3.new_zeros(len(u_N3), config.features)
        for corner in range(8):
            bits = [corner >> axis & 1 for axis in range(3)]
            index = torch.zeros_like(low[:, 0], dtype=torch.long)
            weight = torch.ones_like(position[:, 0])
            for axis, bit in enumerate(bits):
                place = low[:, axis].long() + bit
                fraction = position[:, axis] - low[:, axis]
                weight = weight * (fraction if bit else 1 - fraction)
                hashed = index ^ (place * PRIMES[axis] % 2**32)
                index = index + place * level.stride**axis if level.dense else hashed
            index = index % level.size
            value = value + weight[:, None] * table_EF[index + level.offset]
        parts.append(value)
    return torch.cat(parts, dim=-1)
