"""Occupied parts of a field: a boolean volume over its unit cube, cell (i, j, k) along x, y, z.

Clipped log-density never reaches zero density (e⁻² per unit length), so correct rendering needs this mask.

Legend: N points, H cells per axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EXACT_CELLS = 256
_UNSEEN = 1e-4


def lookup(grid_HHH: Tensor, u_N3: Tensor) -> Tensor:
    """Return whether the cells of points are occupied, bool [N]; False outside the unit cube."""
    size = grid_HHH.shape[0]
    cell_N3 = (u_N3 * size).clamp(0, size - 1)
    # Integers up to 2²⁴ are exact in float32, which saves a third of the conversions.
    cell_N3 = cell_N3.floor() if size <= _EXACT_CELLS else cell_N3.long()
    x_N, y_N, z_N = cell_N3.unbind(dim=-1)
    index_N = ((x_N * size + y_N) * size + z_N).long()
    inside_N = ((u_N3 - 0.5).abs() <= 0.5).all(dim=-1)
    return grid_HHH.reshape(-1)[index_N] & inside_N


def dilate(grid_HHH: Tensor, cells: int = 1) -> Tensor:
    """Grow the occupied part by ``cells`` cells in all 26 directions."""
    size = 2 * cells + 1
    return F.max_pool3d(grid_HHH[None, None].float(), size, stride=1, padding=cells)[0, 0] > 0


def bounds(grid_HHH: Tensor) -> Tensor:
    """Return the lower and upper corner [2, 3] of the occupied cells; the whole unit cube if none is occupied."""
    if grid_HHH.device.type == "meta":
        return torch.empty(2, 3, device="meta")
    size = grid_HHH.shape[0]
    low, high = torch.zeros(3, device=grid_HHH.device), torch.ones(3, device=grid_HHH.device)
    cell_M3 = grid_HHH.nonzero()
    if len(cell_M3):
        low, high = cell_M3.amin(dim=0) / size, (cell_M3.amax(dim=0) + 1) / size
    return torch.stack((low, high))


def faintest(aabb_23: Tensor) -> Tensor:
    """Return the density [] at which a whole box has opacity 1e-4; anything fainter is invisible."""
    return _UNSEEN / (aabb_23[1] - aabb_23[0]).norm()


def sample(grid_HHH: Tensor, count: int, generator: torch.Generator, *, uniform: float = 0.15) -> Tensor:
    """Draw points [count, 3] of the unit cube in occupied cells, the last ``uniform`` share of them anywhere.

    They are on the generator's device. Without occupied cells, all points are drawn from the whole cube.
    """
    device = generator.device
    cells = grid_HHH.to(device).reshape(-1).nonzero()[:, 0]
    inside = round(count * (1 - uniform)) if len(cells) else 0
    u_N3 = torch.rand(count, 3, generator=generator, device=device)
    if inside:
        size = grid_HHH.shape[0]
        chosen = cells[torch.randint(len(cells), (inside,), generator=generator, device=device)]
        corner = torch.stack((chosen // size**2, chosen // size % size, chosen % size), dim=-1)
        u_N3[:inside] = (corner + u_N3[:inside]) / size
    return u_N3
