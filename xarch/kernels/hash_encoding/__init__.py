"""Multi-resolution hash encoding of points (Instant-NGP, arXiv 2201.05989, section 3).

Legend: N points, L levels, E rows of the table, F features a row.
"""

from __future__ import annotations

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.hash_encoding import cpp, naive, plain
from xarch.kernels.hash_encoding.config import HashConfig, Level, level_table
from xarch.kernels.precision import without_autocast

__all__ = ["HashConfig", "Level", "cpp", "hash_encode", "level_table", "naive", "plain"]


def hash_encode(u_N3: Tensor, table_EF: Tensor, config: HashConfig, *, backend: str | None = None) -> Tensor:
    """Trilinear interpolation in every level of a hash grid.

    Args:
        u_N3: points of the unit cube; those outside are clamped to it.
        table_EF: the rows of all levels, coarse to fine.
        config: the levels.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        [N, L * F] in float32 (float64 if an input is), level by level.

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    if u_N3.dim() != 2 or u_N3.shape[1] != 3:
        raise UsageError(f"hash_encode: want points [N, 3], got {list(u_N3.shape)}")
    if tuple(table_EF.shape) != (config.rows, config.features):
        raise UsageError(
            f"hash_encode: the table has shape {list(table_EF.shape)}, its levels want {[config.rows, config.features]}"
        )
    features = {"position_gradient"} if u_N3.requires_grad else set()
    chosen = select("hash_encode", u_N3.device, u_N3.dtype, features=features, backend=backend)
    with without_autocast(u_N3.device):
        return chosen.run(u_N3, table_EF, config)
