"""Conversion of log-densities to densities for a grid that interpolates density and clips it at zero.

Between samples, one form is linear in the density, the other in its logarithm: exact samples make every surface half a
voxel thicker. A linear function of the log-density, k · (s − c), interpolates exactly like s, with its zero inside the
cell where the surface ends. It only changes the profile in between, and removes densities below exp(c).

Legend: X, Y, Z samples, s log-density, B bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS, ZEROS, SLOPES = 256, 48, 48
REACH = 4
"""Voxels over which opacities are compared; deeper inside, both forms are opaque."""


def line_of(raw_XYZ: Tensor, matter_XYZ: Tensor, voxel: float) -> tuple[float, float]:
    """Return (k, c) of the line that best matches opacity, at samples and halfway between them.

    Args:
        raw_XYZ: clipped log-densities.
        matter_XYZ: mask of samples that hold matter; the others are empty.
        voxel: voxel size in world units.
    """
    samples = [raw_XYZ[matter_XYZ]]
    for axis in range(3):
        one, two = (raw_XYZ.narrow(axis, start, raw_XYZ.shape[axis] - 1) for start in (0, 1))
        near = matter_XYZ.narrow(axis, 0, one.shape[axis]) | matter_XYZ.narrow(axis, 1, one.shape[axis])
        samples.append(((one + two) / 2)[near])
    seen, length = torch.cat(samples), REACH * voxel
    low, high = float(seen.min()), float(seen.max()) + 1e-3
    share_B = torch.histc(seen, BINS, low, high)
    s_B = low + (torch.arange(BINS) + 0.5) * (high - low) / BINS
    zero = torch.linspace(low - 1, high, ZEROS)[:, None, None]
    slope = (torch.linspace(-5, 3, SLOPES).exp() / length)[:, None]
    wrong = _opacity((slope * (s_B - zero)).clamp_min(0), length) - _opacity(s_B.exp(), length)
    best = int((wrong.square() * share_B).sum(dim=-1).argmin())
    return float(slope[best % SLOPES]), float(zero[best // SLOPES])


def _opacity(sigma: Tensor, length: float) -> Tensor:
    return 1 - torch.exp(-sigma * length)
