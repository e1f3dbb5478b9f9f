"""Which parts of a field hold matter: a boolean volume over its unit cube, cell (i, j, k) along x, y, z.

Clipped log-density is never quite empty (e⁻² per unit length), so rendering is only right with this mask. The refresh
rule is that of Instant-NGP (arXiv 2201.05989, appendix C). Legend: N points, H cells an axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from xarch_field.field import RadianceField

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


def build(
    field: RadianceField,
    *,
    resolution: int = 64,
    passes: int = 3,
    threshold: float = 10.0,
    seed: int = 0,
    grow: int = 1,
    chunk: int = 1 << 16,
) -> Tensor:
    """Find the occupied cells of a field that has no occupancy of its own.

    Args:
        field: queried at ``passes`` jittered points per cell; its own mask is ignored.
        resolution: cells an axis.
        threshold: a cell is occupied above min(mean density, threshold) per world unit.
        seed: of the jitter.
        grow: cells by which the result is dilated, against holes at the rim.
        chunk: points per query.

    Returns:
        bool [H, H, H].
    """
    densities = DensityGrid(torch.ones(resolution, resolution, resolution, dtype=torch.bool), seed=seed)
    return densities.refresh(field, passes=passes, threshold=threshold, grow=grow, chunk=chunk)


class DensityGrid:
    """The densities of a field's cells while it is trained: the largest seen, fading with every refresh.

    One point per cell and refresh misses what is thinner than a cell; what was found before outlasts such a miss. Only
    cells that may hold matter are asked: those given, and whatever has become occupied next to them.

    Args:
        within_HHH: bool [H, H, H], the cells that may hold matter.
        decay: factor of earlier densities at each refresh.
        seed: of the points in the cells.

    Attributes:
        sigma_HHH: density per world unit of each cell, float [H, H, H]; zero where nobody asked.
    """

    def __init__(self, within_HHH: Tensor, *, decay: float = 0.95, seed: int = 0) -> None:
        self.within_HHH = within_HHH
        self.decay = decay
        self.sigma_HHH = torch.zeros(within_HHH.shape, device=within_HHH.device)
        self._jitter = torch.Generator(device="cpu").manual_seed(seed)

    @torch.no_grad()
    def refresh(
        self, field: RadianceField, *, passes: int = 1, threshold: float = 10.0, grow: int = 1, chunk: int = 1 << 16
    ) -> Tensor:
        """Ask the field and return the occupied cells, bool [H, H, H] on its device; arguments as of :func:`build`."""
        device, size = field.aabb.device, self.within_HHH.shape[0]
        self.within_HHH, best = self.within_HHH.to(device), self.sigma_HHH.to(device).reshape(-1) * self.decay
        low, high = field.sigma_clip
        cells = self.within_HHH.reshape(-1).nonzero()[:, 0]
        for _ in range(passes):
            for index in cells.split(chunk):
                corner = torch.stack((index // size**2, index // size % size, index % size), dim=-1)
                shift = torch.rand(len(index), 3, generator=self._jitter).to(device)
                raw = field.sigma_raw(field.to_world((corner + shift) / size))
                best[index] = torch.maximum(best[index], raw.clamp(low, high).exp())
        self.sigma_HHH = best.view(size, size, size)
        occupied = self.sigma_HHH > min(float(best.mean()), threshold)
        occupied = dilate(occupied, grow) if grow else occupied
        self.within_HHH = self.within_HHH | occupied
        return occupied


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
