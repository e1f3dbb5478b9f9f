"""Recompute the occupancy and the box of an edited field.

Cells are kept if visible: the threshold is an optical depth, not the mean density, so that thin objects beside a solid
one remain. The density of empty space (the lower clip of a field) does not count as matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch_field import RadianceField
from xarch_field.model import occupancy as occupancies
from xarch_pvd.editing.fields import EditedField, haze_of, possible

FAINT = 1e-3
"""Optical depth across a cell above which it is occupied; if no cell reaches it, any density counts."""
PASSES, CHUNK = 4, 1 << 16
FEWEST, MOST = 64, 128
"""Cells per axis."""


def settle(field: EditedField, *, keep_box: bool) -> None:
    """Set the occupancy of an edited field, and shrink its box to fit unless the box must be kept.

    The occupancy is empty if nothing is left.
    """
    cell = finest_cell(field)
    if not keep_box and field.warp == "aabb":
        grid = occupied_cells(field, FEWEST)
        if not bool(grid.any()):
            field.set_occupancy(grid)
            return
        field.aabb.copy_(field.to_world(occupancies.bounds(grid)))
    longest = float((field.aabb[1] - field.aabb[0]).max())
    field.set_occupancy(occupied_cells(field, min(max(round(longest / cell), FEWEST), MOST)))


@torch.no_grad()
def occupied_cells(field: EditedField, resolution: int) -> Tensor:
    """Return cells with matter at one of a few jittered points, and their neighbours, bool [H, H, H]."""
    device = field.aabb.device
    jitter = torch.Generator().manual_seed(0)
    best = torch.zeros(resolution**3, device=device)
    cell_M3 = torch.cartesian_prod(*(torch.arange(resolution, device=device),) * 3)
    # A warp makes cells of many sizes; using the smallest keeps more of them.
    diagonal = float((field.aabb[1] - field.aabb[0]).norm()) / resolution
    enough = max(FAINT / diagonal, 1.01 * field.haze)
    for _ in range(PASSES):
        for rows in torch.arange(len(cell_M3), device=device).split(CHUNK):
            shift = torch.rand(len(rows), 3, generator=jitter).to(device)
            # what an earlier pass has found is not looked at again
            unknown = best[rows] <= enough
            rows, shift = rows[unknown], shift[unknown]
            x_N3 = field.to_world((cell_M3[rows] + shift) / resolution)
            near = possible(field, x_N3).nonzero()[:, 0]
            if len(near):
                sigma_N = field.at(x_N3[near], None, {"sigma"})["sigma"]
                best[rows[near]] = torch.maximum(best[rows[near]], sigma_N)
    found = best > enough
    found = found if bool(found.any()) else best > 1.01 * field.haze
    return occupancies.dilate(found.view((resolution,) * 3))


@torch.no_grad()
def holds_matter(field: RadianceField, x_N3: Tensor) -> Tensor:
    """Return whether points hold matter denser than haze, bool [N]."""
    return field.query(x_N3, None, ("sigma",))["sigma"] > 1.01 * haze_of(field)


def finest_cell(field: EditedField) -> float:
    """Return the size of the parts' smallest occupancy cell, as placed in the edited field."""
    sizes = []
    for part in field.below:
        if isinstance(part, EditedField):
            sizes.append(finest_cell(part))
        else:
            sides = part.aabb[1] - part.aabb[0]
            sizes.append(float(sides.max()) / part.occupancy.shape[0])
    return min(sizes) / getattr(field, "gain", 1.0)
