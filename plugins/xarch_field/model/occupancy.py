"""Which parts of a field hold matter: a boolean volume over its unit cube, cell (i, j, k) along x, y, z.

Clipped log-density is never quite empty (e⁻² per unit length), so rendering is only right with this mask.

Legend: N points, H cells an axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EXACT_CELLS = 256
_UNSEEN = 1e-4


def lookup(grid_HHH: Tensor, u_N3: Tensor) -> Tensor:
    """Whether the cells of points in the unit cube are occupied, bool [N]; outside the cube nothing is."""
    size = grid_HHH.shape[0]
    cell_N3 = (u_N3 * size).clamp(0, size - 1)
    # Whole numbers up to 2²⁴ are exact in float32, and a third of the conversions is saved.
    cell_N3 = cell_N3.floor() if size <= _EXACT_CELLS else cell_N3.long()
    x_N, y_N, z_N = cell_N3.unbind(dim=-1)
    index_N = ((x_N * size + y_N) * size + z_N).long()
    inside_N = ((u_N3 - 0.5).abs() <= 0.5).all(dim=-1)
    return grid_HHH.reshape(-1)[index_N] & inside_N


def dilate(grid_HHH: Tensor, cells: int = 1) -> Tensor:
    """Grow the occupied part by whole cells in all 26 directions."""
    size = 2 * cells + 1
    return F.max_pool3d(grid_HHH[None, None].float(), size, stride=1, padding=cells)[0, 0] > 0


def bounds(grid_HHH: Tensor) -> Tensor:
    """Lower and upper corner [2, 3] of the occupied cells in the unit cube; the whole cube if none is."""
    if grid_HHH.device.type == "meta":
        return torch.empty(2, 3, device="meta")
    size = grid_HHH.shape[0]
    low, high = torch.zeros(3, device=grid_HHH.device), torch.ones(3, device=grid_HHH.device)
    cell_M3 = grid_HHH.nonzero()
    if len(cell_M3):
        low, high = cell_M3.amin(dim=0) / size, (cell_M3.amax(dim=0) + 1) / size
    return torch.stack((low, high))


def faintest(aabb_23: Tensor) -> Tensor:
    """The density with which a whole box is a ten-thousandth opaque, []: whatever is fainter cannot be seen."""
    return _UNSEEN / (aabb_23[1] - aabb_23[0]).norm()


def sample(grid_HHH: Tensor, count: int, generator: torch.Generator, *, uniform: float = 0.15) -> Tensor:
    """Random points of the unit cube [count, 3] in occupied cells, the last ``uniform`` share of them anywhere.

    They lie on the generator's device. With no occupied cell all points lie anywhere.
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
