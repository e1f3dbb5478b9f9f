"""Closed-form baking of any field into dense voxels: values at the vertices, colours as spherical harmonics.

Legend: N vertices, M directions, K harmonics, 3 = x, y, z (or r, g, b).
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import RadianceField, spherical_harmonics
from xarch_field.model import occupancy as occupancies
from xarch_pvd.targets.representations import build_field, options_of
from xarch_pvd.targets.representations.voxel_field import VoxelField

DIRECTIONS = 16
"""Number of directions in which colour is sampled to fit spherical harmonics (at least degree²)."""
CHUNK = 1 << 15
COLOUR_LIMIT = 1e-3


def baked(field: RadianceField, *, resolution: int, degree: int = 2) -> VoxelField:
    """Bake a field into voxels over its own box.

    Args:
        resolution: samples along the longest side; the spacing is the same along the others.
        degree: degree of the harmonics, 1 (view-independent) to 4.

    Raises:
        UsageError: the field is warped, so that no box contains it, or an option is out of range.
    """
    if field.warp != "aabb":
        raise UsageError(
            f"a field with warp {field.warp} extends to infinity, but voxels do not",
            "crop it to a box first: --edits '[{crop: {box: [[-1, -1, -1], [1, 1, 1]]}}]'",
        )
    sides = (field.aabb[1] - field.aabb[0]).tolist()
    counts = [max(2, round((resolution - 1) * side / max(sides)) + 1) for side in sides]
    options = options_of("tensors", {"resolution": counts, "degree": degree}, "voxels")
    voxels = build_field(
        "tensors",
        options,
        aabb=field.aabb,
        sigma_clip=(_lowest(field), field.sigma_clip[1]),
        occupancy=field.occupancy.clone(),
        background=field.background,
    )
    assert isinstance(voxels, VoxelField)
    bake(field, voxels)
    return voxels.eval().requires_grad_(False)


def bake(teacher: RadianceField, voxels: VoxelField) -> None:
    """Fill a volume with the teacher's values at its vertices, without training.

    Colours are sampled in fixed directions and fitted by least squares before the sigmoid. Vertices outside the
    occupied cells (dilated once) get the lowest density.
    """
    # A value far below empty would erode the surface when interpolated towards an occupied neighbour.
    low, high = _lowest(voxels), voxels.sigma_clip[1]
    grid = occupancies.dilate(voxels.occupancy)
    axes = [torch.linspace(0, 1, size, device=voxels.volume.device) for size in voxels.volume.shape[:3]]
    u_N3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    inside = occupancies.lookup(grid, u_N3).nonzero()[:, 0]
    dirs = _sphere(max(DIRECTIONS, 2 * voxels.degree**2)).to(u_N3.device)
    fit_KM = torch.linalg.pinv(spherical_harmonics(dirs, voxels.degree))
    with torch.no_grad():
        flat = torch.zeros_like(voxels.volume).flatten(0, 2)
        flat[:, 0] = low
        for rows in inside.split(CHUNK):
            x_N3 = voxels.to_world(u_N3[rows])
            # A feature does not depend on direction: query it once.
            source = teacher.block1(x_N3) if teacher.has_feature else x_N3
            raw_N = source[:, 0] if teacher.has_feature else teacher.sigma_raw(x_N3)
            flat[rows, 0] = raw_N.clamp(low, high)
            colours = [teacher.colour(source, d.expand(len(rows), 3)) for d in dirs]
            logits_MN3 = torch.logit(torch.stack(colours).clamp(COLOUR_LIMIT, 1 - COLOUR_LIMIT))
            flat[rows, 1:] = torch.einsum("km,mnc->nck", fit_KM, logits_MN3).flatten(1)
        voxels.volume.copy_(flat.view(voxels.volume.shape))


def _lowest(field: RadianceField) -> float:
    return max(field.sigma_clip[0], float(occupancies.faintest(field.aabb).log()))


def _sphere(count: int) -> Tensor:
    """Return evenly spread directions on the sphere [count, 3] (a Fibonacci spiral)."""
    place = torch.arange(count) + 0.5
    z = 1 - 2 * place / count
    around = torch.pi * (1 + 5**0.5) * place
    ring = (1 - z * z).sqrt()
    return torch.stack((ring * torch.cos(around), ring * torch.sin(around), z), dim=-1)
