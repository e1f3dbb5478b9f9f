"""Level sizes of a torch-ngp hash table, and the growth factor a file leaves unsaid.

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
    """First row of every level and the number of rows, ``levels + 1`` numbers."""
    rows = [0]
    for level in range(levels):
        side = math.ceil(base * growth**level) + 1
        rows.append(rows[-1] + -(-min(1 << log2_table, side**3) // 8) * 8)
    return rows


def growth_of(
    seen: Sequence[int], bound: float, where: str, growth: float | None = None, base: int = BASE
) -> tuple[float, int]:
    """(growth factor, log2 of the largest level) that give the offsets ``seen``.

    Args:
        growth: what the user says; without it the finest resolutions of published configurations are tried, with and
            without the factor ``bound``.

    Raises:
        UsageError: the offsets are not ascending, or none of the growth factors gives them.
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
        # A table with no level at its limit has a limit that nothing shows: any larger one gives the same offsets.
        for log2 in (log2_table, log2_table + 1):
            if offsets(levels, factor, log2, base) == list(seen):
                return factor, log2
    raise UsageError(
        f"{where}: no known growth factor gives {levels} levels with offsets {list(seen)[:6]}...",
        "say the finest resolution N the field was trained with: growth = (N / 16) ** (1 / (levels - 1))",
    )
