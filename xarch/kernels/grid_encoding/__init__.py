"""Products of interpolated grids: dense voxels, planes times lines (VM), lines (CP), tri-planes.

One operation serves the factorised fields of TensoRF (arXiv 2203.09517), Plenoxels (arXiv 2112.05131) and K-planes
(arXiv 2301.10241): a group multiplies its factors channel by channel, a factor is a grid over one, two or three axes.

Legend: N points, C channels of a group, S samples an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.grid_encoding import cpp, naive, plain
from xarch.kernels.precision import island_dtype, without_autocast

__all__ = ["Factor", "cpp", "grid_encode", "naive", "plain"]

Factor = tuple[Tensor, tuple[int, ...]]
"""A grid [S, ..., C] and the coordinate that each of its sample axes follows."""


def grid_encode(u_N3: Tensor, groups: Sequence[Sequence[Factor]], *, backend: str | None = None) -> Tensor:
    """For each group the product of its factors, each interpolated linearly at the points.

    Samples lie at the corners of the unit cube: coordinate 0 is the first sample of an axis and 1 the last.

    Args:
        u_N3: points of the unit cube; those outside are clamped to it.
        groups: factors of a group have the same number of channels.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        [N, sum of C] in float32 (float64 if an input is), group by group.

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    _check(u_N3, groups)
    dtype = island_dtype(u_N3, *(table for group in groups for table, _ in group))
    features = {"position_gradient"} if u_N3.requires_grad else set()
    chosen = select("grid_encode", u_N3.device, dtype, features=features, backend=backend)
    with without_autocast(u_N3.device):
        return chosen.run(u_N3.to(dtype), [[(t.to(dtype), axes) for t, axes in group] for group in groups])


def _check(u_N3: Tensor, groups: Sequence[Sequence[Factor]]) -> None:
    if u_N3.dim() != 2 or u_N3.shape[1] != 3:
        raise UsageError(f"grid_encode: want points [N, 3], got {list(u_N3.shape)}")
    for i, group in enumerate(groups):
        channels = {table.shape[-1] for table, _ in group}
        if len(channels) != 1:
            raise UsageError(f"grid_encode: factors of group {i} have {sorted(channels)} channels, want one number")
        for table, axes in group:
            if not 1 <= len(axes) <= 3 or table.dim() != len(axes) + 1 or min(table.shape[:-1]) < 2:
                raise UsageError(
                    f"grid_encode: a factor of group {i} over axes {axes} has shape {list(table.shape)}, "
                    "want one dimension of at least 2 samples for each axis, and channels last"
                )
