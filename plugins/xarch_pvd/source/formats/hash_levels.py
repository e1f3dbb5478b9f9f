"""Level sizes of a torch-ngp hash table, and the growth factor that files do not store.

Source: ``GridEncoder`` of torch-ngp, as used by progressive volume distillation (arXiv 2211.15977).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from xarch import UsageError

BASE = 16
"""Resolution of the coarsest level in every published configuration."""
FINEST = (2048, 1024, 512, 4096, 256, 8192, 128)


def offsets(levels: int, growth: float, log2_table: int, base: int = BASE) -> list[int]:
    """Return the first row of every level and the total number of rows, ``levels + 1`` numbers."""
    rows = [0]
    for level in range(levels):
        side = math.ceil(base * growth**level) + 1
        rows.append(rows[-1] + -(-min(1 << log2_table, side**3) // 8) * 8)
    return rows


def growth_of(
    seen: Sequence[int], bound: float, where: str, growth: float | None = None, base: int = BASE
) -> tuple[float, int]:
    """Return (growth factor, log2 of the largest level) that produce the offsets ``seen``.

    Args:
        growth: value given by the user; otherwise the finest resolutions of published configurations are tried, with
            and without the factor ``bound``.

    Raises:
        UsageError: the offsets are not ascending, or no growth factor produces them.
    """
    levels = len(seen) - 1
    if levels < 1 or seen[0] != 0 or any(a >= b for a, b in itertools.pairwise(seen)):
        raise UsageError(f"{where}: encoder.offsets {list(seen)[:6]} are not ascending from 0")
    log2_table = max(1, math.floor(math.log2(max(b - a for a, b in itertools.pairwise(seen)))))
    if growth is not None:
        tried = [float(growth)]
    elif levels == 1:
        tried = [1.0]
    else:
        finest = [f * b for f in FINEST for b in dict.fromkeys((bound, 1.0))]
        tried = [2 ** (math.log2(f / base) / (levels - 1)) for f in finest if f > base]
        tried.append(2.0)
    for factor in tried:
        # If no level reaches the limit, the limit is unknown: any larger one produces the same offsets.
        for log2 in (log2_table, log2_table + 1):
            if offsets(levels, factor, log2, base) == list(seen):
                return factor, log2
    raise UsageError(
        f"{where}: no known growth factor produces {levels} levels with offsets {list(seen)[:6]}...",
        "set growth from the finest resolution N used in training: growth = (N / 16) ** (1 / (levels - 1))",
    )
