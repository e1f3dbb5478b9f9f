"""Occupied cells found from images with a coarse volume before a field is trained (DVGO, arXiv 2111.11215).

A field trained in the whole box takes five times as long per step at first, and the random walk of its parameters in
empty space costs quality that pruning does not restore. A volume of few voxels finds the occupied cells in seconds for
any kind of field. If images are opaque with a uniform background, matter of that colour explains it as well as empty
space does, and few cells are excluded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xarch_field import RadianceField
from xarch_field.model.densities import build as build_occupancy
from xarch_pvd.targets.representations.voxel_field import VoxelField, VoxelOptions
from xarch_pvd.train.pixels import Pixels

RATE = 0.1
"""Learning rate of the volume, equal to that of voxels in training."""
START = 1.0
"""Optical depth of the untrained box along its diagonal: low enough for every ray to reach its end."""
VISIBLE = 0.01
"""Opacity of a step of 1/128 of the diagonal above which a cell is occupied: slightly above untrained cells, to exclude
cells in which no image needs matter, and far below anything visible."""
FINEST = 128
EMPTIEST = 1e-3
"""Minimum optical depth of a box along its diagonal."""


def coarse_occupancy(
    model: RadianceField, pixels: Pixels, *, resolution: int, steps: int, rays: int, samples: int, seed: int
) -> Tensor:
    """Find the cells of a field's box that may hold matter, bool [H, H, H], including a margin of one cell.

    Args:
        model: the field that provides box and warp; it is not modified.
        pixels: pixels of the training images.
        resolution: cells per axis; the volume has half as many voxels.
        steps: optimiser steps.
        rays: rays per step.
        samples: steps per ray.
        seed: seed of rays and jitter.
    """
    diagonal = float((model.aabb[1] - model.aabb[0]).norm())
    volume = VoxelField(
        VoxelOptions(resolution=max(resolution // 2, 2), degree=1),
        aabb=model.aabb,
        warp=model.warp,
        warp_parameters=model.warp_parameters,
        march_aabb=model.march_aabb,
        sigma_clip=(math.log(EMPTIEST / diagonal), model.sigma_clip[1]),
    )
    with torch.no_grad():
        volume.volume.zero_()
        volume.volume[..., 0] = math.log(START / diagonal)
    optimiser = torch.optim.Adam([volume.volume], lr=RATE, betas=(0.9, 0.99), eps=1e-15, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        pixels.error(volume, rays, samples, generator).backward()
        optimiser.step()
    threshold = -math.log(1 - VISIBLE) * FINEST / diagonal
    return build_occupancy(volume, resolution=resolution, threshold=threshold, passes=2, seed=seed)
