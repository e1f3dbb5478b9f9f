"""The levels of a multi-resolution hash grid: scale, stride, size and place in the table.

Sources: Instant-NGP (arXiv 2201.05989, section 3); the layouts are those of torch-ngp, tiny-cuda-nn and nerfstudio's
PyTorch fallback, which differ in strides, offsets and which levels are dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

PRIMES = (1, 2654435761, 805459861)
Style = Literal["torch_ngp", "tcnn", "nerfstudio"]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution.

    Attributes:
        scale, shift: position in cells is u * scale + shift.
        stride: vertices an axis in a dense level.
        offset, size: rows of the table that belong to the level.
        dense: rows are counted instead of hashed.
    """

    scale: float
    shift: float
    stride: int
    offset: int
    size: int
    dense: bool


@dataclass(frozen=True, slots=True)
class HashConfig:
    """Shape of the encoding.

    Attributes:
        levels, features: number of resolutions and channels of each.
        log2_size: most rows of a level, as a power of two.
        base, finest: cells an axis of the first and the last level; those between grow geometrically.
        style: "torch_ngp" (stride R + 1, small levels dense), "tcnn" (stride R), "nerfstudio" (every level hashed).
        sizes: rows of each level where a file states them, else empty.
    """

    levels: int = 14
    features: int = 2
    log2_size: int = 19
    base: int = 16
    finest: float = 2048
    style: Style = "torch_ngp"
    sizes: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Width of the encoding."""
        return self.levels * self.features

    @property
    def rows(self) -> int:
        """Rows of the table."""
        last = level_table(self)[-1]
        return last.offset + last.size


@lru_cache(maxsize=64)
def level_table(config: HashConfig) -> tuple[Level, ...]:
    """Every level of a configuration, coarse to fine."""
    growth = 2 ** (math.log2(config.finest / config.base) / max(config.levels - 1, 1))
    most, offset, levels = 2**config.log2_size, 0, []
    for i in range(config.levels):
        cells = config.base * growth**i
        if config.style == "nerfstudio":
            scale, shift, stride, size = _whole_cells(config, i), 0.0, 0, most
        else:
            stride = math.ceil(cells) + (1 if config.style == "torch_ngp" else 0)
            scale, shift = cells - 1, 0.5
            size = (min(most, stride**3) + 7) // 8 * 8
        size = config.sizes[i] if config.sizes else size
        dense = config.style != "nerfstudio" and stride**3 <= size
        levels.append(Level(scale, shift, stride, offset, size, dense))
        offset += size
    return tuple(levels)


def _whole_cells(config: HashConfig, level: int) -> float:
    """Cells an axis rounded down in float32, as the original does: the last level may lose a cell to rounding."""
    growth = np.exp((np.log(config.finest) - np.log(config.base)) / max(config.levels - 1, 1))
    powers = np.float32(growth) ** np.arange(config.levels, dtype=np.float32)
    return float(np.floor(np.float32(config.base) * powers[level]))
