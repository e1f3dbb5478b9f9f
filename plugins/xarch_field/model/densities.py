"""Occupied cells of a field found by querying it, refreshed as in Instant-NGP (arXiv 2201.05989, appendix C).

Legend: N points, H cells per axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch_field.model import occupancy
from xarch_field.model.field import RadianceField


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
    """Find the occupied cells of a field without an occupancy grid.

    Args:
        field: queried at ``passes`` jittered points per cell; its own mask is ignored.
        resolution: cells per axis.
        threshold: a cell is occupied above min(mean density, threshold) per world unit.
        seed: of the jitter.
        grow: cells by which the result is dilated, to avoid holes at the boundary.
        chunk: points per query.

    Returns:
        bool [H, H, H].
    """
    densities = DensityGrid(torch.ones(resolution, resolution, resolution, dtype=torch.bool), seed=seed)
    return densities.refresh(field, passes=passes, threshold=threshold, grow=grow, chunk=chunk)


class DensityGrid:
    """Decaying maximum of the density seen in each cell of a field during training.

    One point per cell and refresh misses anything thinner than a cell; earlier densities persist through such a miss.
    Only cells that may be occupied are queried: those given, and neighbours of occupied cells.

    Args:
        within_HHH: bool [H, H, H], the cells that may be occupied.
        decay: factor of earlier densities at each refresh.
        seed: of the points in the cells.

    Attributes:
        sigma_HHH: density per world unit of each cell, float [H, H, H]; zero where not queried.
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
        """Query the field; return the occupied cells, bool [H, H, H] on its device. Arguments: see :func:`build`."""
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
        occupied = occupancy.dilate(occupied, grow) if grow else occupied
        self.within_HHH = self.within_HHH | occupied
        return occupied
