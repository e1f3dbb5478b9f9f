"""Where matter may be, found from pictures with a coarse volume before a field is trained (DVGO, arXiv 2111.11215).

A field that is trained in the whole box first spends five times as long on a step, and the random walk of its
parameters in empty space costs it quality that pruning does not give back. A volume of few voxels finds the occupied
cells in seconds, whatever the field is that is trained then. Where pictures are opaque and their background is of one
colour, matter of that colour explains it as well as empty space does, and few cells are left out.
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
"""Learning rate of the volume, that of voxels in training."""
START = 1.0
"""Optical depth of the untrained box along its diagonal: light enough that every ray sees through to its end."""
VISIBLE = 0.01
"""Opacity of a step of 1/128 of the diagonal from which a cell counts: a little more than untrained cells have, so that
cells in which no picture wants matter do not, and far below the opacity of anything that a picture shows."""
FINEST = 128
EMPTIEST = 1e-3
"""Optical depth of the emptiest possible box along its diagonal."""


def coarse_occupancy(
    model: RadianceField, pixels: Pixels, *, resolution: int, steps: int, rays: int, samples: int, seed: int
) -> Tensor:
    """The cells of a field's box that may hold matter, bool [H, H, H], one cell of margin included.

    Args:
        model: the field whose box and warp count; it is not changed.
        pixels: of the training pictures.
        resolution: cells per axis; the volume has half as many voxels.
        steps: optimiser steps.
        rays: rays per step.
        samples: steps per ray.
        seed: of rays and jitter.
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
